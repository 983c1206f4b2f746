"""Telling a channel: a webhook, what Slack takes, mail."""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
import urllib.error
import urllib.request
from email.message import EmailMessage
from typing import Any

from leptonai.core.errors import Fault, InputError
from leptonai.core.values import value_to_json
from leptonai.operations.incidents.channels import Channel, read_secret, why_not
from leptonai.operations.incidents.incident import Change, Incident
from leptonai.operations.incidents.notify import words_of

TIMEOUT_SECONDS = 10.0
SIGNATURE_HEADER = "X-Lepton-Signature"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could lead a secret elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(channel: Channel, incident: Incident, change: Change) -> None:
    """Tell one channel of one change.

    Raises:
        InputError: its address or secret cannot be used.
        Fault: it could not be reached or did not take it.
    """
    if channel.kind == "email":
        _mail(channel, incident, change)
        return
    headline, text = words_of(incident, change)
    if channel.kind == "slack":
        body: dict[str, Any] = {"text": f"{headline}\n{text}"}
    else:
        body = {"version": 1, "change": change, "headline": headline, "incident": value_to_json(incident)}
    data = json.dumps(body, sort_keys=True).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "lepton"}
    if channel.kind == "webhook" and channel.secret_file is not None:
        headers[SIGNATURE_HEADER] = signature(read_secret(channel.secret_file), data)
    _post(channel, data, headers)


def signature(secret: str, body: bytes) -> str:
    """What the receiver of a webhook computes too, to know who sent it: HMAC-SHA256 of the body.

    >>> signature("key", b"{}")[:19]
    'sha256=a777724d943e'
    """
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _post(channel: Channel, data: bytes, headers: dict[str, str]) -> None:
    request = urllib.request.Request(channel.address(), data=data, headers=headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
            answer.read(1024)
    except urllib.error.HTTPError as error:
        error.close()
        raise Fault(f"channel {channel.name}: answered {error.code}") from None
    except (OSError, ValueError) as error:  # not the error itself: it may hold the address
        raise Fault(f"channel {channel.name}: could not be reached ({type(error).__name__})") from None


def _mail(channel: Channel, incident: Incident, change: Change) -> None:
    headline, text = words_of(incident, change)
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = headline, channel.sender, ", ".join(channel.to)
    # Mails of one incident form one thread.
    message["References"] = f"<incident-{incident.number}@{channel.host}>"
    message.set_content(text)
    away = bool(why_not(f"http://{channel.host}"))
    try:
        with smtplib.SMTP(channel.host, channel.port, timeout=TIMEOUT_SECONDS) as server:
            if away:
                server.starttls(context=ssl.create_default_context())
            if channel.user:
                if channel.secret_file is None:
                    raise InputError(
                        f"channel {channel.name}: user needs secret_file, which holds the password"
                    )
                server.login(channel.user, read_secret(channel.secret_file))
            server.send_message(message)
    except (OSError, smtplib.SMTPException) as error:
        raise Fault(f"channel {channel.name}: mail could not be sent ({type(error).__name__})") from None
