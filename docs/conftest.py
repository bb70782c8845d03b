"""The pages and notebooks compile the same programs again and again: once is enough."""
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module", autouse=True)
def compiled_once(cache_folder):
    """JAX keeps what it compiles in a folder, and so do the notebooks' processes."""
    settings = {
        "jax_compilation_cache_dir": cache_folder,
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name.upper(), str(value))      # for the notebooks
            jax.config.update(name, value)
        compilation_cache.reset_cache()                 # it looks at the settings once
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
