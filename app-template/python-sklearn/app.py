"""The app: a plain HTTP server between Millrace and the model. Run it with `python -m app`.

POST /process         one event in, one result out
POST /process-batch   many events in, one answer to each out

Invariant: a bad event is refused with 422 (in a batch: `fail`), never with 500, so that Millrace
puts it aside instead of trying it again.
"""

import asyncio
import gc
import os

import msgspec
import sklearn
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import model

BODY_BYTES_MAX = 8 * 1024 * 1024
BATCH_EVENTS_MAX = 200

# `decode` has checked every number already; scikit-learn need not look again.
sklearn.set_config(assume_finite=True, skip_parameter_validation=True)
classifier = model.load()
decode_biopsy = msgspec.json.Decoder(model.Biopsy).decode
encode = msgspec.json.Encoder().encode


def decode(value: bytes | str) -> model.Biopsy:
    """Strict: UTF-8, JSON, and each field as `Biopsy` says; otherwise one of `Undecodable`."""
    return decode_biopsy(value if isinstance(value, str) else str(value, "utf-8"))


Undecodable = (ValueError, RecursionError)


async def process(request: Request) -> Response:
    """One event: the body is its value."""
    body = await read(request)
    if request.headers.get("millrace-tombstone") == "true":
        return Response(status_code=204)  # no value: no result
    try:
        biopsy = decode(body)
    except Undecodable as error:
        raise HTTPException(422, str(error)) from error
    diagnosis = await together.predict(biopsy)
    return Response(encode(diagnosis), media_type="application/json")


class Together:
    """Single events that arrive in the same moment share one call of the model, which doubles
    the throughput. `[diagnosis] = model.predict(classifier, [biopsy])` would do as well.

    A model that takes longer than some milliseconds belongs in a thread, here and in
    `process_batch`: `await run_in_threadpool(model.predict, classifier, biopsies)`.
    """

    def __init__(self):
        self.waiting = []

    async def predict(self, biopsy: model.Biopsy) -> model.Diagnosis:
        if not self.waiting:  # the first one; its task runs after all requests that are ready now
            self.call = asyncio.create_task(self.predict_waiting())
        call, place = self.call, len(self.waiting)
        self.waiting.append(biopsy)
        try:
            return (await asyncio.shield(call))[place]
        except Exception:  # perhaps a neighbour's fault: alone, each gets its own answer
            return model.predict(classifier, [biopsy])[0]

    async def predict_waiting(self) -> list[model.Diagnosis]:
        biopsies, self.waiting = self.waiting, []
        return model.predict(classifier, biopsies)


together = Together()


class Item(msgspec.Struct):
    """One event of a batch: text in `value`, other bytes in `value_base64`, null if it has none."""

    id: str
    value: str | None = ""
    value_base64: bytes = b""


class Batch(msgspec.Struct):
    items: list[Item]


decode_batch = msgspec.json.Decoder(Batch).decode


async def process_batch(request: Request) -> Response:
    """Many events: all good ones go through the model in one call."""
    try:
        items = decode_batch(await read(request)).items
    except Undecodable as error:
        raise HTTPException(422, str(error)) from error
    if len(items) > BATCH_EVENTS_MAX:
        raise HTTPException(413, f"{len(items)} events, at most {BATCH_EVENTS_MAX}")

    results, biopsies = [], {}
    for item in items:
        value = item.value_base64 or item.value
        if value is None:
            results.append({"id": item.id, "status": "filter"})
            continue
        try:
            biopsies[item.id] = decode(value)
        except Undecodable as error:
            results.append({"id": item.id, "status": "fail", **error_body(422, str(error))})
    if biopsies:
        for id, diagnosis in zip(biopsies, model.predict(classifier, list(biopsies.values()))):
            output = {"value": encode(diagnosis).decode()}
            results.append({"id": id, "status": "ok", "outputs": [output]})
    return Response(encode({"results": results}), media_type="application/json")


async def read(request: Request) -> bytes:
    """The whole body, or 413 before it fills the memory."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"more than {BODY_BYTES_MAX} bytes")
    return bytes(body)


async def healthz(request: Request) -> Response:
    """Answers once the model is loaded: the server does not listen before."""
    return PlainTextResponse("ok")


async def about(request: Request) -> Response:
    """What this app can do, for Millrace to check against its configuration."""
    return JSONResponse(
        {
            "contract": "1",
            "modes": ["reply"],
            "requests": ["single", "batch"],
            "content": ["raw"],
            "max_batch": BATCH_EVENTS_MAX,
            "idempotent": True,
        }
    )


def error_body(status: int, message: str) -> dict:
    code = {413: "TOO_LARGE", 422: "BAD_INPUT"}.get(status, "NOT_SERVED")
    return {"error": {"code": code, "message": message, "retryable": False}}


async def refuse(request: Request, error: HTTPException) -> Response:
    body = error_body(error.status_code, error.detail)
    return JSONResponse(body, error.status_code, error.headers)


async def client_left(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it; it keeps a stack trace out of the log


app = Starlette(
    routes=[
        Route("/process", process, methods=["POST"]),
        Route("/process-batch", process_batch, methods=["POST"]),
        Route("/healthz", healthz),
        Route("/.well-known/millrace", about),
    ],
    exception_handlers={HTTPException: refuse, ClientDisconnect: client_left},
)

if __name__ == "__main__":
    # What is loaded by now stays: without this, the garbage collector walks through all of
    # scikit-learn again and again, and requests wait 50 ms for it.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app,
        host=os.environ.get("HOST", "127.0.0.1"),
        port=int(os.environ.get("PORT", "8080")),
        uds=os.environ.get("SOCKET"),  # with app.contract.transport: UnixSocket, instead of the port
        access_log=False,  # a line per event would cost more than the model
        timeout_keep_alive=600,  # seconds; the proxy, not the app, closes idle connections
    )
