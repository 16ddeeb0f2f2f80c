"""The edge to Triton: the only module that knows its Python API. Triton loads it once for each physical FM."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from fmplex_backend.errors import FMplexError, InvalidInput
from fmplex_backend.host.access import token_in
from fmplex_backend.host.counts import Series
from fmplex_backend.host.guard import Guard
from fmplex_backend.host.host import FMHost
from fmplex_backend.host.log import INITIALIZED, LOG_FORMAT, HostLog, event_of
from fmplex_backend.host.publishing import Publisher
from fmplex_backend.host.requests import Ask, Reply
from fmplex_backend.repository.config import FMSettings
from fmplex_backend.repository.modalities import TENSORS
from fmplex_backend.repository.sockets import SOCKETS, STATUS_OUTPUT, output_name


class TritonPythonModel:
    """One physical FM."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declare the inputs, and for every port one output per socket. Raises on settings that are wrong."""
        values = config.as_dict()
        settings = _settings(values["name"], values["parameters"])
        for tensor in TENSORS.values():
            config.add_input(
                {"name": tensor.name, "data_type": tensor.data_type, "dims": list(tensor.dims), "optional": True}
            )
        config.add_output({"name": STATUS_OUTPUT, "data_type": "TYPE_STRING", "dims": [1]})
        # add_output() compares each with all before it: 1.8 s for the 6,000 of 1,024 ports.
        config.as_dict()["output"] += [
            {"name": output_name(port, socket.name), "data_type": socket.data_type, "dims": socket.dims}
            for port in range(settings.ports)
            for socket in SOCKETS.values()
        ]
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Start the host. It returns when the engines are ready and every vFM of the repository is loaded."""
        config = json.loads(args["model_config"])
        name = args["model_name"]
        folder = Path(args["model_repository"])
        repository = folder.parent if folder.name == name else folder
        self._guard = Guard(os.getppid(), os.getpid())
        try:
            settings = _settings(name, config["parameters"]).located(repository / name)
            log = _host_log(name)
            self._host = FMHost(repository, name, log, settings=settings)
            self._host.start()
        except FMplexError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._publisher = Publisher(name, self._host.metrics, _metric_family, log)
        self._publisher.start()
        print(INITIALIZED.format(name), file=sys.stderr, flush=True)

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Take the requests and return at once; replies are sent later, from other threads.

        What is refused is answered by what this returns, in place of a message of its own to tritonserver and back.
        Must not raise once a sender was taken: the model could then never unload.
        """
        refusals = [self._take(request) for request in requests]
        if not any(refusals):
            return None
        return [None if error is None else _error_response(error) for error in refusals]

    def _take(self, request: Any) -> FMplexError | None:
        try:
            ask = _ask(request)
        except Exception as error:  # e.g. an id that is not UTF-8, which comes over HTTP
            return self._host.refused(InvalidInput(f"the request cannot be read: {error}"))
        return self._host.ask(ask)

    def finalize(self) -> None:
        """Stop the host; joins every thread and process."""
        self._publisher.stop()
        self._host.stop()
        self._guard.close()


def _settings(name: str, parameters: dict[str, dict[str, str]]) -> FMSettings:
    values = {key: value["string_value"] for key, value in parameters.items()}
    return FMSettings.parse(values, f"physical FM {name!r}")


def _host_log(fm: str) -> HostLog:
    """By Triton's own log, or past it: its lines are no JSON."""
    if os.environ.get(LOG_FORMAT) == "json":
        return HostLog(lambda line: print(line, file=sys.stderr, flush=True), fm, as_json=True)
    return HostLog(_tell)


def _tell(line: str) -> None:
    tell = pb_utils.Logger.log_info if event_of(line) == "note" else pb_utils.Logger.log_warn
    tell(f"fmplex: {line}")


def _metric_family(series: Series) -> Any:
    kinds = {"counter": pb_utils.MetricFamily.COUNTER, "gauge": pb_utils.MetricFamily.GAUGE}
    return pb_utils.MetricFamily(name=series.name, description=series.help, kind=kinds[series.kind])


def _ask(request: Any) -> Ask:
    sender, timeout = request.get_response_sender(), request.timeout()
    return Ask(
        outputs=frozenset(request.requested_output_names()),
        inputs={tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()},
        respond=functools.partial(_send, sender),
        timeout=timeout / 1e6 if timeout else None,
        token=token_in(request.parameters()),
        request_id=request.request_id(),
    )


def _send(sender: Any, reply: Reply) -> None:
    if isinstance(reply, FMplexError):
        response = _error_response(reply)
    else:
        response = pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in reply.items()])
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _error_response(error: FMplexError) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, error.code)))
