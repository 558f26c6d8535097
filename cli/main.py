"""The `tacit` command: every command by name, and the one place where an error becomes a line and an exit code.

The modules of the commands import what is heavy when they run, so that `tacit --help` costs next to nothing.
"""

import sys

import typer

from cli import (
    db,
    evaluate,
    health,
    jobs,
    keys,
    model,
    plan,
    selftest,
    serve,
    site,
    status,
    train,
    transcript,
    up,
    version,
)
from cli.compose_demo.command import compose_demo_app
from cli.demo.command import demo
from cli.loadtest.command import loadtest
from cli.pki import pki_app
from cli.privacy.command import privacy_app
from fl_core.errors import TacitError

EXIT_FAILED = 1

app = typer.Typer(
    name="tacit",
    help="Federated learning for organisations that may not pool their data. "
    "Only the sum over a cohort ever exists in the clear.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

START = "Start here"
OPERATE = "Jobs and models"
RUN = "Services and sites"
OTHER = "Other"

app.command("demo", rich_help_panel=START)(demo)
app.command("up", rich_help_panel=START)(up.up)
app.command("plan", rich_help_panel=OPERATE)(plan.plan)
app.command("train", rich_help_panel=OPERATE)(train.train)
app.command("status", rich_help_panel=OPERATE)(status.status)
app.command("evaluate", rich_help_panel=OPERATE)(evaluate.evaluate)
app.add_typer(jobs.jobs_app, name="jobs", rich_help_panel=OPERATE)
app.add_typer(model.model_app, name="model", rich_help_panel=OPERATE)
app.add_typer(transcript.transcript_app, name="transcript", rich_help_panel=OPERATE)
app.add_typer(privacy_app, name="privacy", rich_help_panel=OPERATE)
app.command("serve", rich_help_panel=RUN)(serve.serve)
app.command("site", rich_help_panel=RUN)(site.site)
app.command("health", rich_help_panel=RUN)(health.health)
app.add_typer(pki_app, name="pki", rich_help_panel=RUN)
app.add_typer(keys.keys_app, name="keys", rich_help_panel=RUN)
app.add_typer(db.db_app, name="db", rich_help_panel=RUN)
app.command("selftest", rich_help_panel=OTHER)(selftest.selftest)
app.command("loadtest", rich_help_panel=OTHER)(loadtest)
app.add_typer(compose_demo_app, name="compose-demo", rich_help_panel=OTHER)
app.command("version", rich_help_panel=OTHER)(version.version)


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process.

    An error of Tacit is one line on stderr and exit code 1; a wrong option is what typer says and exit code 2.
    """
    try:
        app(args=arguments)
    except TacitError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    run()
