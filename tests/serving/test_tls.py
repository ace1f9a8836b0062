"""Certificates that can be used, and what is said of others before anything is served."""

import pytest
from certificate_kit import self_signed

from gemel_ray.serving.tls import read_certificate
from gemel_ray.spec.errors import InputError


def test_a_certificate_and_its_key_can_be_used(tmp_path):
    cert, key = self_signed(tmp_path)
    found = read_certificate(cert, key)
    assert (found.cert, found.key) == (cert, key)
    assert read_certificate(None, None) is None


def test_one_without_the_other_is_told(tmp_path):
    cert, key = self_signed(tmp_path)
    with pytest.raises(InputError, match=r"--tls-cert .* needs --tls-key"):
        read_certificate(cert, None)
    with pytest.raises(InputError, match=r"--tls-key .* needs --tls-cert"):
        read_certificate(None, key)


def test_files_that_cannot_be_used_are_told(tmp_path):
    cert, key = self_signed(tmp_path)
    _, other = self_signed(tmp_path, "other")
    (tmp_path / "text.pem").write_text("no certificate")
    absent = tmp_path / "absent.pem"
    for given in ((cert, other), (key, key), (tmp_path / "text.pem", key), (absent, key), (cert, absent)):
        with pytest.raises(InputError, match="cannot be used"):
            read_certificate(*given)
