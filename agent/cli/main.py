"""The command line: finds the command, turns errors into `error:` and `hint:` lines and a status.

Exit status: 0 done, 1 failed, 2 usage, 3 refused policy. stdout is the result, stderr the rest.
"""

import importlib
import os
import sys
import traceback

import click

from agent.errors import EXIT_FAILED, EXIT_USAGE, AgentError

EXIT_OK = 0

# Command -> one line of help; a command's module is imported only when it runs (start-up on a
# small board: rich and pydantic alone cost more than most commands).
_COMMANDS = {
    "check": "Build everything that `run` would, start nothing.",
    "demo": "Show the main job on this machine: broker, agent, two recipients, a revocation.",
    "doctor": "Look at an installation and say what is wrong with it.",
    "explain": "Tell why a VSS path leaves the vehicle, or does not.",
    "keys": "Make keys for policies, devices and recipients.",
    "ledger": "Show, verify and prove what the vehicle's ledger says.",
    "open": "Open envelopes with a recipient's key.",
    "pause": "Stop collecting and publishing at once, at the vehicle.",
    "play": "Put recorded logs onto a bus, for engineers.",
    "policy": "Write, sign, compare and verify policies, and sign restrictions.",
    "receive": "Receive and open a recipient's envelopes from a broker.",
    "replay": "Print what would leave the vehicle for recorded logs.",
    "restrict": "Hand over a restrict document at the vehicle.",
    "resume": "Lift a stop that was set at the vehicle.",
    "run": "Run the agent.",
    "spool": "Look at, check or erase what waits on the disk.",
    "status": "Show how the running agent is.",
    "top": "Watch the running agent.",
}
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it.


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"agent.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="consentry", prog_name="consentry")
@click.option("--debug", is_flag=True, help="Print the traceback of a failure.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:  # noqa: FBT001 - click passes it by keyword
    """Consentry lets out of a vehicle only what its owner consented to, sealed to its recipient."""
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command line and exit with its status."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run one command line and return its exit status."""
    try:
        status = cli.main(args, prog_name="consentry", standalone_mode=False)
        sys.stdout.flush()
    except AgentError as exc:
        if "--debug" in args:
            traceback.print_exc()
        return fail(exc)
    except click.ClickException as exc:
        shown = (
            exc.ctx.command_path if isinstance(exc, click.UsageError) and exc.ctx else "consentry"
        )
        click.echo(f"error: {exc.format_message()}", err=True)
        click.echo(f"hint: {shown} --help shows the usage", err=True)
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`… | head`). Keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return status if isinstance(status, int) else 0


def fail(error: AgentError) -> int:
    """Print an error as a person reads it and return the exit status that belongs to it."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    return error.exit_code
