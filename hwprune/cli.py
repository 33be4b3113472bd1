"""The ``hwprune`` command. Torch and TVM are imported inside the commands that need them, so ``--help`` is quick."""

from typing import Annotated

import typer

from hwprune import cli_artifacts, cli_jobs, cli_store, cli_targets

app = typer.Typer(
    name="hwprune",
    help="Prune a PyTorch network to a latency on your target, and compile it into something that can be shipped.",
    epilog="Exit codes: 0 done, 1 the job failed, 2 bad usage, 130 interrupted. `hwprune COMMAND --help` has examples.",
    no_args_is_help=True,
    add_completion=False,
    # Plain help needs no rich, whose import costs as much as everything else together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(wanted: bool) -> None:
    if wanted:
        from hwprune import __version__

        typer.echo(f"hwprune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for _command in (
    cli_jobs.search,
    cli_jobs.finetune,
    cli_artifacts.compile,
    cli_artifacts.run,
    cli_artifacts.bench,
    cli_jobs.measure,
    cli_jobs.inspect,
):
    app.command()(_command)
app.add_typer(cli_targets.app, name="targets")
app.add_typer(cli_store.app, name="store")


def main() -> None:
    app(prog_name="hwprune")
