"""The real server, started as Millrace starts it: HOST and PORT in the environment."""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

import model


@pytest.fixture(scope="session")
def client():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "HOST": "127.0.0.1", "PORT": port}
    server = subprocess.Popen([sys.executable, "-m", "app"], cwd=model.HERE, env=environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until_healthy(client, server, deadline=time.monotonic() + 60)
            yield client
        server.terminate()
        server.wait(timeout=30)  # SIGTERM must be enough
    finally:
        server.kill()
        server.wait()


def wait_until_healthy(client, server, deadline):
    while True:
        assert server.poll() is None, "the app ended"
        assert time.monotonic() < deadline, "the app did not become healthy"
        try:
            if client.get("/healthz").status_code == 200:
                return
        except httpx.ConnectError:
            time.sleep(0.05)
