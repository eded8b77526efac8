"""A stand-in for the server of W&B on loopback, to which W&B's own client talks online.

The client sends the head of a run by GraphQL; the rows of its history, its summary and its end by the file
stream; and files, those of tables and pictures among them, by PUT to addresses that it is told. What it sent
is kept, to be compared with what was logged.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

KEY = "0" * 40  # as long as a real one
ENTITY = "somebody"


@dataclass
class Run:
    """What arrived of a run.

    Attributes:
        head: Its group, project, displayed name and the like, as they were sent.
        rows: Of its history, by their place.
        summary: As it was sent last.
        files: By name.
        exit_code: With which it ended; None if it did not.
    """

    head: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {name: each["value"] for name, each in json.loads(self.head["config"]).items()}

    def history(self, name: str) -> list[Any]:
        """Return what was logged as ``name``, in its order."""
        return [row[name] for _, row in sorted(self.rows.items()) if name in row]

    def file(self, name: str) -> bytes:
        """Return the last file that was logged as ``name``."""
        return self.files[self.history(name)[-1]["path"]]

    def table(self, name: str) -> list[list[Any]]:
        """Return the rows of the last table that was logged as ``name``."""
        rows: list[list[Any]] = json.loads(self.file(name))["data"]
        return rows


class WandbServer(ThreadingHTTPServer):
    """The server; see :func:`wandb_server`.

    Attributes:
        runs: By their ids.
        broken: What it answers to all, such as 401; 0 to close each connection; None to do its work.
        unknown: The operations that it was asked for and does not know.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.runs: dict[str, Run] = {}
        self.broken: int | None = None
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def named(self) -> dict[str, Run]:
        """Return the runs by the names that are displayed."""
        return {run.head["displayName"]: run for run in self.runs.values()}

    def handle_error(self, *_: Any) -> None: ...  # the client leaves as it likes

    def graphql(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """Return the data that an operation asks for."""
        if name == "UpsertBucket":
            run = self.runs.setdefault(given["name"], Run())
            run.head |= {key: value for key, value in given.items() if value is not None}
            owner = {"id": "1", "name": ENTITY}
            project = {"id": "1", "name": run.head["project"], "entity": owner}
            bucket = {"id": given["name"], "name": given["name"], "displayName": run.head.get("displayName")}
            bucket |= {"project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": self._place(given["run"], each)} for each in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        if name == "CreateArtifactFiles":
            nodes = [
                {"storagePath": each["name"], "uploadUrl": self._place("artifact", each["name"])}
                | {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": "1"}}
                for each in given["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
        return self._same_for_all[name]

    @property
    def _same_for_all(self) -> dict[str, dict[str, Any]]:
        """What is answered to operations of which nothing is kept, by their names."""
        account = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        artifact = {"id": "1", "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
        file = {"id": "1", "uploadUrl": self._place("artifact", "manifest"), "uploadHeaders": []}
        manifest = {"artifactManifest": {"id": "1", "file": file}}
        return {
            "Viewer": {"viewer": {**account, "teams": {"edges": []}}},
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "OrganizationCoreWeaveOrganizationID": {"entity": None},
            "ArtifactType": {"project": None},
            "CreateArtifact": {"createArtifact": {"artifact": artifact}},
            "CreateArtifactManifest": {"createArtifactManifest": manifest},
            "UpdateArtifactManifest": {"updateArtifactManifest": manifest},
            "CommitArtifact": {"commitArtifact": {"artifact": {"id": "1", "digest": ""}}},
        }

    def _place(self, run: str, name: str) -> str:
        return f"{self.url}/storage/{run}/{quote(name)}"

    def stream(self, run: Run, sent: dict[str, Any]) -> None:
        """Keep what came by the file stream."""
        for name, part in sent.get("files", {}).items():
            rows = map(json.loads, part["content"])
            if name == "wandb-history.jsonl":
                run.rows.update(enumerate(rows, part["offset"]))
            elif name == "wandb-summary.json":
                *_, run.summary = rows
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None: ...

    def do_POST(self) -> None:
        body = self._body()
        if self.server.broken is not None:
            self._refuse(self.server.broken)
        elif self.path == "/graphql":
            asked = json.loads(body)
            name = asked["query"].partition("(")[0].partition("{")[0].split()[1]
            try:
                self._answer({"data": self.server.graphql(name, asked.get("variables") or {})})
            except KeyError:
                self.server.unknown.append(name)
                self._refuse(400)
        else:
            *_, run, last = self.path.split("/")
            if last == "file_stream":
                self.server.stream(self.server.runs[run], json.loads(body))
            self._answer({})

    def do_PUT(self) -> None:
        _, _, run, name = unquote(self.path).split("/", maxsplit=3)
        body = self._body()
        if run in self.server.runs:
            self.server.runs[run].files[name] = body
        self._answer({})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _refuse(self, status: int) -> None:
        if status:
            self._answer({"errors": [{"message": "refused"}]}, status)
        self.close_connection = True

    def _answer(self, found: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Give a server that works while the block lasts."""
    with WandbServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
