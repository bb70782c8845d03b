"""check tells whether the number that you found in an exercise is right.

    from docs.checks import check
    check("2.1", 0.7)       prints "2.1: right", "2.1: wrong" or "2.1: not yet"

The numbers are not in this file, only their hashes (SHA-256), so that it does not show
them. (Trying all numbers takes seconds.) Your number is rounded to a whole number of
steps, and right if the hash of this whole number is the one below. (Or that of the
whole number before or after it: last digits differ. Where the step is 1, things are
counted, and the number has to be exact.) To add an exercise: print(entry(NAME, NUMBER,
STEP)).
"""
import hashlib
import math

# The name of an exercise: (the step, the hash)
ENTRIES = {
    "1.1": (0.001, "1ca010d97ccbb6f4"),
    "1.2": (0.001, "14e028cea60b9de1"),
    "1.3": (0.05, "4c1149f5b6adc257"),
    "2.1": (0.001, "b6d4c04aba7e18be"),
    "2.2": (1, "df654a30ad54233e"),
    "2.3": (0.001, "5e151498e1483212"),
    "3.1": (0.01, "b9b247f06a901810"),
    "3.2": (0.001, "019527f4288072ab"),
    "3.3": (0.1, "3f67b1033e4b1c91"),
    "4.1": (0.0001, "b420db941772303b"),
    "4.2": (1, "ed6b01f9ecc725d6"),
    "4.3": (1, "7feedfb67302edc0"),
    "5.1": (0.001, "a7b6f2ffe0e4636c"),
    "5.2": (0.02, "f34e9e75e8b19612"),
    "5.3": (0.005, "6dff4137f6505179"),
    "5.4": (0.1, "b6d23c393a2be97f"),
    "6.1": (0.005, "34e01083bce21aaf"),
    "6.2": (0.03, "205a7902ede98a33"),
    "6.3": (0.02, "2fb7098c9261e493"),
}


def digest(name, steps):
    return hashlib.sha256(f"{name}: {steps}".encode()).hexdigest()[:16]


def entry(name, number, step):
    return step, digest(name, round(number / step))


def is_right(name, number):
    step, right = ENTRIES[name]
    steps = round(float(number) / step)
    tolerated = [0] if step == 1 else [-1, 0, 1]
    return right in [digest(name, steps + k) for k in tolerated]


def check(name, number):
    """Print whether number is right for the exercise name; `...` is one not yet done.

    number: anything that float() takes, an array with one number as well.
    """
    if number is ...:
        print(f"{name}: not yet")
    elif not math.isfinite(float(number)):
        print(f"{name}: wrong, {number} is no number")
    elif is_right(name, number):
        print(f"{name}: right")
    else:
        print(f"{name}: wrong")
