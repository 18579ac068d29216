"""What `open` and `receive` share: the recipient's keys and the devices it accepts."""

from collections.abc import Sequence
from pathlib import Path

import click

from agent.cloud.envelope import Devices, RecipientKeys
from agent.cloud.keys import load_key, recipient_private
from agent.core.cose import device_public_key

key_option = click.option(
    "--key",
    "keys",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Your private key (JWK); several.",
)
device_option = click.option(
    "--device",
    "devices",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="The public key (JWK) of an enrolled device; several.",
)


def load_keys(keys: Sequence[Path], devices: Sequence[Path]) -> tuple[RecipientKeys, Devices]:
    """Return kid -> private key, and kid -> device.

    Raises:
        KeyFileError: A file is no such key.
    """
    private = [load_key(path) for path in keys]
    enrolled = [device_public_key(load_key(path)) for path in devices]
    return (
        {str(jwk["kid"]): recipient_private(jwk) for jwk in private},
        {device.kid: device for device in enrolled},
    )
