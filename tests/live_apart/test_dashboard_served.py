"""The dashboard as its users see it: `fmplex dashboard` over a real server under load, in a real browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.live import wait_for
from support.recipes import RECIPES, write_vfm
from support.served import FMPLEX, Served, run, serving

from fmplex_client import Client, FMplexClientError
from fmplex_tools.files import write_whole
from fmplex_tools.server.process import free_ports

pytest.importorskip("nicegui", reason="needs the extra 'dashboard'")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra 'test'")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Debian's packages chromium and chromium-driver"),
]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,800"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
FLEET_PAGE = """
import json, sys
from pathlib import Path
from fmplex_backend.errors import Unavailable
from fmplex_tools.dashboard.serving import serve_page
from fmplex_tools.dashboard.watch import Watch

def status():
    try:
        return json.loads(Path(sys.argv[1]).read_text())
    except FileNotFoundError:
        raise Unavailable("the controller has died") from None

with Watch(1.0) as watch:
    watch.fleet("tested", status)
    serve_page(watch, "127.0.0.1", int(sys.argv[2]), lambda: None)
"""


class Page:
    """A browser with what it has shown, asked and complained of."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def texts(self, selector: str) -> list[str]:
        """Of all elements, as they stand in the page at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def text(self, selector: str) -> str:
        return " ".join(" ".join(self.texts(selector)).split())

    def tile(self, name: str) -> str:
        return self.text(f'[data-test="tile {name}"] .value')

    def figure(self, name: str) -> float:
        """Of a tile; 0 where it has none."""
        found = re.match(r"[\d.]+", self.tile(name).replace(",", ""))
        return float(found[0]) if found else 0.0

    def vfms(self) -> list[str]:
        """Names in the table, from top to bottom."""
        return self.texts("[data-test=vfms] .vfm-link")

    def wait_text(self, selector: str, part: str) -> None:
        wait_for(lambda: part in self.text(selector), f"{part!r} in {selector}, where it says {self.text(selector)!r}")

    def complaints(self) -> list[str]:
        """Errors and warnings in the console since the last time."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")]

    def asked(self) -> set[str]:
        """Hosts that this page was got from, or has asked for anything."""
        hosts = set()
        for line in self.driver.get_log("performance"):
            message = json.loads(line["message"])["message"]
            url = message["params"].get("request", message["params"]).get("url", "")
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                scheme, _, rest = url.partition("://")
                if scheme in ("http", "https", "ws", "wss"):
                    hosts.add(rest.partition("/")[0])
        return hosts


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page(tmp_path / "browser")
    try:
        yield made
    finally:
        made.driver.quit()


@pytest.fixture
def repository(small_repository: Path, tiny_backbone: Path) -> Path:
    write_vfm(small_repository, "other", 2, RECIPES["bare_two"], tiny_backbone, fm="tiny", parameters={"weight": "3"})
    return small_repository


@contextmanager
def load(http: str) -> Iterator[None]:
    """Clients that ask both vFMs all the time."""
    stop = threading.Event()

    def ask(vfm: str) -> None:
        with Client(http) as client:
            for number in itertools.count(1):
                try:
                    client.predict(vfm, [f"row {number}"] * (1 + number % 3))
                except FMplexClientError:
                    stop.wait(0.1)
                if stop.wait(0.01):
                    return

    threads = [threading.Thread(target=ask, args=(vfm,)) for vfm in ("good", "other")]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def shown(url: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """The page's server, from when it answers; ended by Ctrl-C, after which nothing is left of it."""
    # NiceGUI behaves otherwise where it finds itself in a test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def answers() -> bool:
        assert process.poll() is None, process.communicate()[0]
        try:
            return urllib.request.urlopen(url, timeout=10).status == 200
        except OSError:
            return False

    try:
        wait_for(answers, f"{url} answers")
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            printed, _ = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, printed
    assert "Traceback" not in printed, printed


def test_one_machine(page: Page, repository: Path) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}/"
    with serving(repository) as served:
        served.wait_ready()
        metrics = served.ports[2]
        command = [*FMPLEX, "dashboard", "--metrics", f"http://127.0.0.1:{metrics}/metrics", "--port", str(port)]
        taken = run("dashboard", *command[-4:-2], "--port", str(metrics))
        assert (taken.returncode, f"port {metrics} on 127.0.0.1 cannot be used" in taken.stderr) == (1, True), taken
        with shown(url, *command):
            opens_and_moves(page, url, served)
            opens_a_vfm(page, served)
            stop_server(page, served)
            again = Served(repository, "--metrics-port", str(metrics))
            try:
                goes_on(page, again)
                assert not page.complaints()
                assert page.asked() == {f"127.0.0.1:{port}"}, "no other server"
            finally:
                again.process.send_signal(signal.SIGTERM)
                again.finish()


def opens_and_moves(page: Page, url: str, served: Served) -> None:
    page.driver.get(url)
    wait_for(lambda: page.vfms() == ["good", "other"], "both vFMs, and not the one that is refused")
    page.wait_text("[data-test=told]", "live, every 1 s")
    wait_for(lambda: ", 0% busy" in page.text('[data-test="fm tiny"]'), "its figures")
    assert page.tile("errors") == "0/s"
    with load(served.http):
        wait_for(lambda: page.figure("rows") > 1 and page.figure("requests") > 1, "rates of the load")
        first = page.tile("rows")
        wait_for(lambda: page.tile("rows") != first, "numbers change")
        wait_for(lambda: page.text('[data-test="card tiny"] .head').endswith("rows/s"), "the physical FM's rate")
        wait_for(lambda: page.texts("[data-test=vfms] .share-text").count("0%") == 0, "shares of both")
        wait_for(lambda: page.texts("[data-test=vfms] .state").count("●serving") == 2, "states of both, in words")
    search = page.driver.find_element(By.CSS_SELECTOR, "[aria-label='find a vFM']")
    search.send_keys("oth")
    wait_for(lambda: page.vfms() == ["other"], "those that are called like that")
    search.send_keys(Keys.BACKSPACE * 3)
    wait_for(lambda: len(page.vfms()) == 2, "all of them")
    headings = page.driver.find_elements(By.CSS_SELECTOR, "[data-test=vfms] .ag-header-cell-label")
    next(heading for heading in headings if heading.text == "vFM").click()
    wait_for(lambda: page.vfms() == ["good", "other"], "sorted from A")
    next(heading for heading in headings if heading.text == "vFM").click()
    wait_for(lambda: page.vfms() == ["other", "good"], "sorted from Z")


def opens_a_vfm(page: Page, served: Served) -> None:
    weights = page.driver.find_elements(By.CSS_SELECTOR, '[data-test=vfms] .ag-row [col-id="weight"]')
    next(cell for cell in weights if cell.text == "3").click()
    wait_for(lambda: page.driver.current_url.endswith("/vfm/other"), "a click on a row opens its vFM")
    wait_for(lambda: page.text("[data-test=vfm]") == "other", "its name")
    assert "weight 3" in page.text('[data-test="tile rows"]')
    with load(served.http):
        wait_for(lambda: page.figure("p99") > 0 and page.figure("rows") > 1, "its latency and rate")
        wait_for(lambda: "%" in page.tile("share") and page.tile("share") != "0%", "its share")
        wait_for(lambda: drawn(page, "p99") > 2 and drawn(page, "share") > 2, "its last minutes")
    assert len(page.texts(".chart canvas")) == 4


def drawn(page: Page, name: str) -> int:
    """Points of the line ``name`` that its chart really has."""
    script = """
      let found = 0;
      for (const element of document.querySelectorAll('.chart')) {
        const shown = getElement(element.id.slice(1)).chart;
        for (const line of shown.getOption().series)
          if (line.name === arguments[0]) found = line.data.filter((point) => point[1] !== null).length;
      }
      return found;
    """
    return int(page.driver.execute_script(script, name))


def stop_server(page: Page, served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    served.finish()
    page.wait_text("[data-test=told]", "no answer since")
    page.wait_text("[data-test=where]", "no answer")
    assert {page.tile(name) for name in ("rows", "p50", "p99", "waiting", "errors")} == {"–"}, "no zeros"
    page.driver.find_element(By.CSS_SELECTOR, "a.back").click()
    page.wait_text("[data-test=lines]", "does not answer since")
    page.wait_text("[data-test=lines]", "Connection refused")
    wait_for(lambda: page.texts("[data-test=vfms] .state").count("✕no answer") == 2, "rows of both say so")
    assert {page.tile(name) for name in ("rows", "requests", "errors", "waiting", "engines busy")} == {"–"}


def goes_on(page: Page, again: Served) -> None:
    """On the same page, without being loaded anew."""
    page.driver.execute_script("window.the_same = true")
    again.wait_ready()
    page.wait_text("[data-test=told]", "live, every 1 s")
    with load(again.http):
        wait_for(lambda: page.figure("rows") > 1, "it goes on by itself")
    assert page.text("[data-test=lines]") == ""
    assert page.driver.execute_script("return window.the_same")


def test_the_browser_finds_a_page_that_was_started_anew(page: Page, repository: Path) -> None:
    [port] = free_ports(1)
    url = f"http://127.0.0.1:{port}/vfm/good"
    with serving(repository) as served:
        served.wait_ready()
        metrics = f"http://127.0.0.1:{served.ports[2]}/metrics"
        command = [*FMPLEX, "dashboard", "--metrics", metrics, "--port", str(port)]
        with shown(url, *command):
            page.driver.get(url)
            page.wait_text("[data-test=where]", "on 127.0.0.1:")
        page.driver.execute_script("document.querySelector('[data-test=where]').textContent = ''")
        with shown(url, *command):
            page.wait_text("[data-test=where]", "on 127.0.0.1:")
            page.wait_text("[data-test=told]", "live")


# ---- a fleet ----


def status(served: Served, **more: Any) -> dict[str, Any]:
    """Of a fleet whose first device is ``served``, as its controller tells it."""
    ports = dict(zip(("http", "grpc", "metrics"), served.ports, strict=True)) | {"health": 1}
    report = {"host": "127.0.0.1", "ports": ports, "memory": 4e9, "up": True, "pid": served.process.pid, "told": ""}
    report |= {
        "held": ["good", "other"],
        "serving": ["good", "other"],
        "current": ["good"],
        "problems": {},
        "used": 1e9,
    }
    device = {"node": "node-0", "lost_for": None, "drained": False, "planned": ["good", "other"], "report": report}
    device["holds"] = ["good", "other"]
    empty = {**device, "node": "node-1", "planned": ["third"], "holds": [], "report": None}
    lost = {**empty, "node": None, "lost_for": 42.0, "planned": []}
    return {
        **{"name": "tested", "claim": 1, "number": 1, "stopped": None, "problems": {"node-1": "is mute"}},
        **{"devices": {"cpu-0": device, "cpu-1": empty, "cpu-2": lost}},
        **{"vfms": {"good": ["cpu-0"], "other": ["cpu-0"], "third": []}, "moving": ["third"], "outdated": ["other"]},
        **{"missing": [], "settled": False, **more},
        **{"door": {"address": "127.0.0.1:8080", "led": 1, "up": True, "problem": ""}},
    }


def test_a_fleet(page: Page, repository: Path, tmp_path: Path) -> None:
    [port] = free_ports(1)
    url, told = f"http://127.0.0.1:{port}/", tmp_path / "status.json"
    with serving(repository) as served:
        served.wait_ready()
        write_whole(told, json.dumps(status(served)))
        with shown(url, sys.executable, "-c", FLEET_PAGE, str(told), str(port)), load(served.http):
            page.driver.get(url)
            wait_for(lambda: page.vfms() == ["good", "other"], "vFMs of the fleet's server")
            wait_for(lambda: page.figure("rows") > 1, "their rates")
            for device, words in (
                ("cpu-0", "serves node-0 · 127.0.0.1:"),
                ("cpu-0", "memory 1.00 of 4.00 GB"),
                ("cpu-0", "▲ other · serves; another version or configuration comes"),
                ("cpu-1", "agent starts"),
                ("cpu-1", "▲ third · comes"),
                ("cpu-2", "✕lost for 42 s"),
            ):
                page.wait_text(f'[data-test="device {device}"]', words)
            for words in ("door 127.0.0.1:8080 (HTTP and gRPC): open, leads to 2 of 3 vFMs", "node-1: is mute"):
                page.wait_text("[data-test=lines]", words)
            told.unlink()
            page.wait_text("[data-test=lines]", "the controller has died")
            page.wait_text("[data-test=told]", "the controller does not answer since")
            wait_for(lambda: page.figure("rows") > 1, "servers are looked at all the same")
            write_whole(told, json.dumps(status(served, vfms={}, moving=[], outdated=[], problems={}, settled=True)))
            page.wait_text("[data-test=lines]", "all is as planned")
            page.wait_text("[data-test=told]", "live")
            assert not page.complaints()
