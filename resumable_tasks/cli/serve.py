"""`serve`: the reports of all checkpoints below a place, as a site for a browser."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Sequence

import click

from resumable_tasks.cli import output
from resumable_tasks.cli.report import refuse_other_forms
from resumable_tasks.errors import UsageError

_EVERY = ("0.0.0.0", "::")  # noqa: S104 - compared with


@click.command(
    epilog="\b\nExamples:\n  resumable serve\n  resumable serve checkpoints --port 8080"
    "\n  resumable serve s3://bucket/checkpoints --host 0.0.0.0 --name reports.example.org",
)
@click.argument("place", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8_765,
    show_default=True,
    help="The port; 0 chooses a free one.",
)
@click.option(
    "--token",
    envvar="RESUMABLE_SERVE_TOKEN",
    default="",
    help="A token that browsers must present; beyond loopback one is generated if none is given.",
)
@click.option(
    "--name", "names", multiple=True, help="A host name by which browsers reach this server."
)
def serve(place: str | None, host: str, port: int, token: str, names: Sequence[str]) -> None:
    """Serve a page that lists the checkpoints in and below PLACE, with a report on each.

    Without PLACE, shows those that `resumable ls` finds from the working directory. The pages show
    the current state and reload automatically. Nothing can be changed through them. Listens only on
    this machine, unless --host says otherwise; then viewers need the token in the printed address.
    Ends with Ctrl-C. Needs: pip install "resumable-tasks[serve]".
    """
    refuse_other_forms(place or "")
    from resumable_tasks.results.report import app

    far = not _is_loopback(host)
    token = token or (secrets.token_urlsafe(24) if far else "")
    known = {*app.LOOPBACK, *names} if not far else {host, socket.gethostname(), *names}
    site = app.application(place, hosts=known, token=token)
    with _listening(host, port) as listener:
        at = f"[{host}]" if ":" in host else host
        at = socket.gethostname() if host in _EVERY else at
        address = f"http://{at}:{listener.getsockname()[1]}/"
        output.lines([address + (f"?token={token}" if token else "")])
        app.run(site, listener)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            remedy="Give another --port (0: any free one), or as --host an address of this machine",
        ) from error
