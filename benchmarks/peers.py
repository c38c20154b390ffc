"""The other side of the baselines: small Python programs that know nothing of vm0, each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from benchmarks.guest import ended

READY_S = 30.0

# Each prints a line when it listens.
ECHO_SERVER = """
import asyncio, sys

async def serve(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def main():
    async with await asyncio.start_unix_server(serve, sys.argv[1]) as server:
        print("ready", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""

# The routes a guest posts to, each answered after so many seconds.
API_SERVER = """
import http.server, json, socketserver, sys, time

DELAY_S = float(sys.argv[2])
ANSWER = json.dumps({"ok": True, "success": True, "id": "x", "checkpointId": "x"}).encode()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(DELAY_S)
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, format, *args):
        pass

    def address_string(self):
        return "guest"

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a guest that was killed

server = Server(sys.argv[1], Handler)
print("ready", flush=True)
server.serve_forever()
"""

# A connection says `r PATH` (send me that file) or `w PATH` (what follows is that file); 256 KiB buffers.
COPY_SERVER = """
import os, socket, sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(1)
print("ready", flush=True)
buffer = bytearray(256 * 1024)
view = memoryview(buffer)
while True:
    peer, _ = listener.accept()
    line = b""
    while not line.endswith(b"\\n"):
        line += peer.recv(1)
    mode, path = line.decode().rstrip("\\n").split(" ", 1)
    if mode == "w":
        with open(path, "wb", buffering=0) as file:
            while count := peer.recv_into(buffer):
                file.write(view[:count])
        peer.sendall(b"k")
    else:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                peer.sendall(view[:count])
    peer.close()
"""


@contextlib.asynccontextmanager
async def running_peer(program: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The program in a Python of its own, after it said that it is ready; ended when the block is left."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", program, *arguments), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(READY_S):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"a baseline's process ended at once with {await process.wait()}")
        yield process
    finally:
        await ended(process)
