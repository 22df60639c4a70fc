"""JupyterLab as a user meets it: started for real, every notebook opened and run in a headless Chromium, without any data."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from helpers import wait_until

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = ROOT / "build" / "browser"
PROCESSOR_SECONDS = 20  # of the kernel; the quickstart distils
pytestmark = pytest.mark.browser


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Starts JupyterLab on copies of the notebooks, without data; yields its address and its process."""
    monkeypatch.setenv("SEQMATCH_DATA", str(tmp_path / "nothing"))
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
        yield address, psutil.Process(process.pid)
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


OUTPUTS = """
const model = window.jupyterapp.shell.currentWidget.content.model;
const cells = Array.from({length: model.cells.length}, (_, i) => model.cells.get(i).toJSON());
return JSON.stringify(cells.filter(cell => cell.cell_type === 'code').map(cell => cell.outputs));
"""
READY = """
const widget = window.jupyterapp?.shell?.currentWidget;
return widget?.context?.isReady && widget.sessionContext?.session?.kernel?.status;
"""
FINISHED = """
const model = window.jupyterapp.shell.currentWidget.content.model;
const cells = Array.from({length: model.cells.length}, (_, i) => model.cells.get(i).toJSON());
const code = cells.filter(cell => cell.cell_type === 'code');
return code.some(cell => cell.outputs.some(output => output.output_type === 'error'))
  || code.every(cell => cell.execution_count !== null);
"""
SHOW_LAST = """
const all = document.querySelectorAll('.jp-RenderedImage img'); const last = all[all.length - 1];
last?.scrollIntoView({block: 'center'}); return last?.naturalWidth;
"""


def run_notebook(chromium, address, name):
    """Opens a notebook in JupyterLab, runs its cells and waits for the last."""
    chromium.get(f"{address}/lab/tree/notebooks/{name}.ipynb")
    wait_until(lambda: chromium.execute_script(READY) == "idle", 240, "kernel")
    chromium.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    wait_until(lambda: chromium.execute_script(FINISHED), 900, "last cell")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs_in_jupyterlab_without_any_data(lab, chromium, name):
    address, process = lab
    run_notebook(chromium, address, name)
    kernels = [child.cpu_times() for child in process.children() if "ipykernel" in " ".join(child.cmdline())]
    used = max(one.user + one.system for one in kernels)
    outputs = chromium.execute_script(OUTPUTS)
    assert '"output_type":"error"' not in outputs, outputs
    assert '"image/png"' in outputs
    if name != "00_quickstart":
        assert used < PROCESSOR_SECONDS
    assert wait_until(lambda: chromium.execute_script(SHOW_LAST), 60, "picture on the page") > 200
    time.sleep(1)  # let it be drawn where it was scrolled to
    save_screenshot(chromium, name)


MENUS = "return document.querySelectorAll('.widget-dropdown select').length"
SHOWN = """
const images = document.querySelectorAll('.jp-OutputArea img');  // two of the cell above the menus, two below them
return images.length === 4 ? images[2].src : null;
"""


def test_menus_change_what_is_shown(lab, chromium):
    """Chooses by hand: another base method, then one subset of it, then one class; the pictures follow each time."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    address, _ = lab
    run_notebook(chromium, address, "30_explore")
    wait_until(lambda: chromium.execute_script(MENUS) == 7, 60, "menus")
    seen = [wait_until(lambda: chromium.execute_script(SHOWN), 60, "pictures below the menus")]
    method, run, subset, label = 3, 4, 5, 6

    def menus():
        return chromium.find_elements(By.CSS_SELECTOR, ".widget-dropdown select")

    for menu, text in ((method, "seqmatch_idc"), (subset, "2"), (label, "8")):
        Select(menus()[menu]).select_by_visible_text(text)
        wait_until(lambda: chromium.execute_script(SHOWN) not in (None, *seen), 60, f"new picture after choosing {text}")
        seen.append(chromium.execute_script(SHOWN))
    chosen = [Select(menu).first_selected_option.text for menu in menus()]
    assert chosen[run].startswith("cifar10-seqmatch_idc-ipc10-k2-")
    assert chosen[subset:] == ["2", "8"]
    chromium.execute_script("document.querySelector('.widget-dropdown').scrollIntoView()")
    time.sleep(1)
    save_screenshot(chromium, "30_explore menus")


def save_screenshot(chromium, name):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    chromium.save_screenshot(str(SCREENSHOTS / f"{name}.png"))
