from tests.prefect.conftest import prefect_env, prefect_server

__all__ = ["prefect_env", "prefect_server"]
