import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey
from jwcrypto.jwk import JWK

from agent.cloud.keys import (
    load_key,
    make_device_key,
    make_policy_key,
    make_recipient_key,
    public_half,
    recipient_private,
    save_key,
)
from agent.errors import KeyFileError


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    """No umask of the machine hides a file mode that is too wide."""
    before = os.umask(0)
    yield
    os.umask(before)


MADE = [
    make_recipient_key("fx-1"),
    make_device_key("dev-1"),
    make_device_key("dev-2", "ES256"),
    make_policy_key("pol-1"),
    make_policy_key("pol-2", "ES256"),
]


@pytest.mark.parametrize("jwk", MADE, ids=lambda jwk: jwk["kid"])
def test_other_libraries_read_our_keys(jwk: dict[str, Any]) -> None:
    plain = {name: value for name, value in jwk.items() if name not in ("kid", "alg")}
    kind = ECKey if jwk["kty"] == "EC" else OKPKey

    assert JWK(**plain).has_private
    assert kind.import_key(plain).is_private
    assert not JWK(**{k: v for k, v in plain.items() if k != "d"}).has_private


def test_each_key_names_its_one_algorithm() -> None:
    assert [(jwk["alg"], jwk["crv"]) for jwk in MADE] == [
        ("HPKE-7-KE", "P-256"),
        ("EdDSA", "Ed25519"),
        ("ES256", "P-256"),
        ("EdDSA", "Ed25519"),
        ("ES256", "P-256"),
    ]


def test_no_two_keys_are_the_same() -> None:
    assert len({make_device_key("dev-1")["d"] for _ in range(20)}) == 20
    assert len({make_recipient_key("fx-1")["d"] for _ in range(20)}) == 20


@pytest.mark.parametrize("kid", ["", "a b", "ü", "a/b", "a" * 65, "#"])
def test_a_kid_that_does_not_fit_a_policy_is_refused(kid: str) -> None:
    for make in (make_recipient_key, make_device_key, make_policy_key):
        with pytest.raises(KeyFileError, match="kid"):
            make(kid)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(KeyFileError, match="HS256"):
        make_device_key("dev-1", "HS256")


@pytest.mark.parametrize("jwk", MADE, ids=lambda jwk: jwk["kid"])
def test_a_private_file_is_for_its_owner_alone_and_comes_back(
    jwk: dict[str, Any], tmp_path: Path
) -> None:
    private, public = tmp_path / "key.jwk", tmp_path / "key.pub.jwk"

    save_key(private, jwk)
    save_key(public, public_half(jwk))

    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert load_key(private) == jwk
    assert load_key(public) == public_half(jwk)
    assert "d" not in public_half(jwk)
    assert jwk["d"] not in public.read_text()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.jwk"
    save_key(path, MADE[0])

    with pytest.raises(KeyFileError, match="not overwritten") as caught:
        save_key(path, MADE[1])

    assert caught.value.hint
    assert load_key(path) == MADE[0]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        save_key(tmp_path / "nowhere" / "key.jwk", MADE[0])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "strict JSON"),
        ("{", "strict JSON"),
        ('{"kid":"a","kid":"b"}', "twice"),
        ("[]", "no JWK"),
        ("{}", "no JWK"),
        ('{"kid":7}', "no JWK"),
        ('{"kid":"' + "a" * 5000 + '"}', "bytes long"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "key.jwk"
    path.write_text(text)

    with pytest.raises(KeyFileError, match=told) as caught:
        load_key(path)

    assert str(path) in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_key(tmp_path / "absent.jwk")


def test_the_recipients_private_key_is_its_public_keys() -> None:
    jwk = make_recipient_key("fx-1")

    numbers = recipient_private(jwk).public_key().public_numbers()

    assert (
        JWK(**{k: jwk[k] for k in ("kty", "crv", "x", "y")}).get_op_key("verify").public_numbers()
        == numbers
    )


@pytest.mark.parametrize(
    "jwk",
    [public_half(MADE[0]), MADE[1], MADE[0] | {"d": make_recipient_key("fx-2")["d"]}],
    ids=["public", "Ed25519", "halves of two keys"],
)
def test_what_cannot_open_envelopes_is_refused_without_telling_the_key(
    jwk: dict[str, Any],
) -> None:
    with pytest.raises(KeyFileError) as caught:
        recipient_private(jwk)

    assert str(jwk.get("d", jwk["x"])) not in str(caught.value)
