"""JupyterLab as a user meets it: started for real, the quickstart opened and run in a headless Chromium."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCREENSHOT = ROOT / "build" / "jupyterlab.png"
pytestmark = pytest.mark.browser


@pytest.fixture
def lab(tmp_path):
    """Starts JupyterLab on copies of the notebooks and yields its address."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=",
        f"--notebook-dir={tmp_path}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    command = [sys.executable, "-m", "jupyter", "lab", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api").close()
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def chromium():
    """Starts a headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs `pip install .[browser]`")
    if shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError(f"no {what} after {seconds} seconds")


OUTPUTS = """
const model = window.jupyterapp.shell.currentWidget.content.model;
const cells = Array.from({length: model.cells.length}, (_, i) => model.cells.get(i).toJSON());
return JSON.stringify(cells.filter(cell => cell.cell_type === 'code').map(cell => cell.outputs));
"""
READY = """
const widget = window.jupyterapp?.shell?.currentWidget;
return widget?.context?.isReady && widget.sessionContext?.session?.kernel?.status;
"""


def test_the_quickstart_runs_in_jupyterlab(lab, chromium):
    chromium.get(f"{lab}/lab/tree/notebooks/00_quickstart.ipynb")
    wait_for(lambda: chromium.execute_script(READY) == "idle", 120, "kernel")
    chromium.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    wait_for(lambda: "records: " in chromium.execute_script(OUTPUTS), 300, "last line of the last cell")
    outputs = chromium.execute_script(OUTPUTS)
    assert '"output_type":"error"' not in outputs
    assert outputs.count('"image/png"') == 6
    picture = wait_for(
        lambda: chromium.execute_script(
            "const all = document.querySelectorAll('.jp-RenderedImage img'); const last = all[all.length - 1];"
            "last?.scrollIntoView({block: 'center'}); return last?.naturalWidth"
        ),
        30,
        "picture on the page",
    )
    assert picture > 300
    time.sleep(1)  # let it be drawn where it was scrolled to
    SCREENSHOT.parent.mkdir(exist_ok=True)
    chromium.save_screenshot(str(SCREENSHOT))
