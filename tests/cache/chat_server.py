"""A chat endpoint as a process of its own, that misbehaves as it is told: ``python tests/cache/chat_server.py RULES``.

RULES is JSON: ``die`` after so many replies (the process ends in the middle of one); ``busy``: questions that are first answered
with 429; ``key``: the bearer token that it wants; ``slow``: seconds a reply takes; ``odd``: number of a reply -> what comes in
its place (``cut``, ``empty``, ``refused``, ``html``, ``filter``, ``null``, ``error``). It prints its port, and appends a line
for every question it was sent to the file ``log``. Only the standard library is imported, so that it is there at once.
"""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

RULES = json.loads(sys.argv[1])
VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
lock, counts = threading.Lock(), {"sent": 0, "busy": 0}


def meaning(numeral: str) -> int:
    worth = [VALUES[c] for c in numeral]
    return sum(-v if v < max(worth[i:]) else v for i, v in enumerate(worth))


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            with open(RULES["log"], "a") as file:
                file.write(json.dumps({"at": time.time(), **asked}) + "\n")
            if RULES.get("key") and self.headers.get("Authorization") != f"Bearer {RULES['key']}":
                return self.reply(401, b"{}")
            if counts["busy"] < RULES.get("busy", 0):
                counts["busy"] += 1
                return self.reply(429, b'{"error": "slow down"}', {"Retry-After": "0"})
            counts["sent"] += 1
            number = counts["sent"]
        time.sleep(RULES.get("slow", 0))
        odd = RULES.get("odd", {}).get(str(number), RULES.get("odd", {}).get("all", ""))
        messages = asked["messages"]
        found = re.findall(r"\b[MDCLXVI]+\b", messages[-1]["content"])
        n = meaning(found[-1]) if found else 0
        text = json.dumps({"reason": "letters", "answer": n}) if "JSON" in messages[0]["content"] else str(n)
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        if odd == "cut":
            choice = {"message": {"content": text[:8]}, "finish_reason": "length"}
        if odd == "empty":
            choice["message"]["content"] = ""
        if odd == "null":
            choice["message"]["content"] = None
        if odd == "refused":
            choice["message"] = {"content": None, "refusal": "I would rather not."}
        if odd == "error":
            return self.reply(500, b"out of order")
        if odd == "filter":
            return self.reply(400, b'{"error": {"code": "content_filter"}}')
        size = sum(len(m["content"].split()) for m in messages)
        body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": size, "completion_tokens": 7}}).encode()
        if odd == "html":
            body = b"<html>gateway</html>"
        if number == RULES.get("die"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            os._exit(1)
        return self.reply(200, body)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", RULES.get("port", 0)), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
