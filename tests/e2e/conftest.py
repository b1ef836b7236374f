from tests.cli.conftest import cli, cli_env  # noqa: F401  the command as its users run it
