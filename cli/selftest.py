"""`tacit selftest`: what an installed system can show about itself."""

from typing import Annotated

import typer

from cli.output import JsonOption, console, print_json

FAILED = 1


def selftest(
    secrecy: Annotated[
        bool, typer.Option("--secrecy", help="Attack the protocol: each attack must fail, and only by its check.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run malicious parties against the protocol of this installation. Needs no service and no network.

    Every attack runs twice: it must fail as things are, and succeed once the one check that stops it is taken out, so
    that the table shows what each check is worth.
    """
    from fl_core.simulation.adversary import run_suite

    if not secrecy:
        raise typer.BadParameter("say what to test: --secrecy")
    outcomes = run_suite()
    rows = [
        {
            "attack": outcome.attack.name,
            "malicious": outcome.attack.malicious,
            "stopped_by": outcome.attack.stopped_by,
            "stopped": outcome.is_stopped,
            "succeeds_without_check": outcome.succeeds_without_check,
        }
        for outcome in outcomes
    ]
    passed = all(outcome.is_right for outcome in outcomes)
    if as_json:
        print_json({"passed": passed, "attacks": rows})
    else:
        _print_table(rows, passed)
    if not passed:
        raise typer.Exit(FAILED)


def _print_table(rows: list[dict[str, object]], passed: bool) -> None:
    from rich.table import Table

    table = Table("attack", "malicious", "stopped by", "stopped", "without the check")
    for row in rows:
        table.add_row(
            str(row["attack"]),
            str(row["malicious"]),
            str(row["stopped_by"]),
            "yes" if row["stopped"] else "NO",
            "succeeds" if row["succeeds_without_check"] else "FAILS TOO",
        )
    console().print(table)
    console().print("every attack is stopped, by its check alone" if passed else "the self-test FAILED")
