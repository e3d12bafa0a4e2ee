"""A real JupyterLab on loopback and a headless Chromium that looks at it, for tests.

Neither reads or writes the user's settings or leaves the machine; both are stopped by their own process handles.
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from services import Service, wait_for

# What the notebook that is open shows: of each code cell its prompt, and of each output its kind and text. Tracebacks
# and stderr have MIME types of JupyterLab's own; a widget has none.
CELLS = """
return Array.from(document.querySelectorAll('.jp-CodeCell'), cell => ({
    prompt: cell.querySelector('.jp-InputPrompt').textContent,
    outputs: Array.from(cell.querySelectorAll('.jp-OutputArea-output'), output => ({
        kind: output.dataset.mimeType || 'widget', text: output.textContent})),
}));
"""
# Keeps the texts of a progress bar and the pictures beside it, in their order, while their cell runs.
WATCH = """
const seen = window.seen = {bars: [], pictures: []};
const keep = (list, value) => list.includes(value) || list.push(value);
const look = () => {
    for (const bar of document.querySelectorAll('.jp-CodeCell .jp-OutputArea-output .widget-hbox')) {
        const cell = bar.closest('.jp-CodeCell');
        if (cell.querySelector('.jp-InputPrompt').textContent != '[*]:') continue;
        keep(seen.bars, bar.textContent.replace(/\\s+/g, ' '));
        for (const picture of cell.querySelectorAll('.jp-OutputArea-output img')) keep(seen.pictures, picture.src);
    }
};
const everything = {subtree: true, childList: true, characterData: true, attributes: true};
new MutationObserver(look).observe(document.body, everything);
"""
# The toolbar's circle is called idle even before there is a kernel, and Run All starts a second one then.
KERNEL_IS_IDLE = "return document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle')"
# No question about news and no look for updates; everything else is as JupyterLab comes.
SETTINGS = {"fetchNews": "false", "checkForUpdates": False}


def missing_programs():
    """What isn't installed of the browser, its driver and selenium, in a list."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return missing + ["selenium"] * (importlib.util.find_spec("selenium") is None)


class LabInBrowser(Service):
    """JupyterLab with the folder `notebooks` of a project's folder as `make lab` starts it, and one browser."""

    def __init__(self, project: Path, folder: Path):
        self.project, self.folder = project, folder
        self.server = self.browser = None

    def start(self):
        self._start_server()
        self._start_browser()

    def _start_server(self):
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                 "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
        own = {name: str(self.folder / name) for name in names}
        # Without CIFAR10_DIR the results are the same on every machine.
        others = {"JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JUPYTER_TOKEN", "CIFAR10_DIR"}
        environment = {name: value for name, value in os.environ.items() if name not in others} | own
        extension = self.folder / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension"
        settings = extension / "notification.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS))
        command = [sys.executable, "-m", "jupyterlab", "notebooks", "--no-browser", "--ip=127.0.0.1", "--port=0",
                   "--LabApp.expose_app_in_browser=True"]
        log = self.folder / "server.log"
        with open(log, "wb") as output:
            self.server = subprocess.Popen(
                command + ["--allow-root"] * (os.getuid() == 0), cwd=self.project, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        state = self.folder / "JUPYTER_RUNTIME_DIR" / f"jpserver-{self.server.pid}.json"
        wait_for(lambda: state.exists() or self.server.poll() is not None, 120, "JupyterLab's server")
        assert self.server.poll() is None, log.read_text()
        self.state = json.loads(state.read_text())

    def _start_browser(self):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        # Loopback goes past the proxy, which isn't there; /dev/shm is small in containers.
        arguments = ["headless=new", "window-size=1400,1000", "proxy-server=127.0.0.1:9", "disable-dev-shm-usage",
                     f"user-data-dir={self.folder / 'chromium'}"]
        for argument in arguments + ["no-sandbox"] * (os.getuid() == 0):
            options.add_argument(f"--{argument}")
        service = webdriver.ChromeService(shutil.which("chromedriver"), env=os.environ | {"HOME": str(self.folder)})
        self.browser = webdriver.Chrome(options, service)

    def stop(self):
        """End the browser, and the server with its kernels."""
        try:
            if self.browser:
                self.browser.quit()
        finally:
            if self.server:
                self._stop_server()

    def _stop_server(self):
        self.server.terminate()
        try:
            self.server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def cells(self):
        """The code cells as they are shown: {prompt, outputs: [{kind, text}]}."""
        return self.browser.execute_script(CELLS)

    def find(self, selector, parent=None):
        """The elements of the page, or below one of them, that a CSS selector selects."""
        return (parent or self.browser).find_elements("css selector", selector)

    def open(self, name, code_cells):
        """Open a notebook alone and wait until it is shown with so many code cells and has its kernel."""
        self.browser.get(f"{self.state['url']}lab/tree/{name}?reset&token={self.state['token']}")

        def ready():
            return self.browser.execute_script(KERNEL_IS_IDLE) and len(self.cells()) == code_cells

        wait_for(ready, 120, f"{name} with its kernel")
        self.browser.execute_script(WATCH)

    def run_all(self, timeout=300):
        """Run All Cells, as by the menu; the cells once all have run, or as soon as one shows an error."""
        self.browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")

        def ended():
            cells = self.cells()
            return cells if errors(cells) or all(cell["prompt"].strip("[]:").isdigit() for cell in cells) else None

        try:
            return wait_for(ended, timeout, "the cells to run")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; they show {self.cells()}") from None

    def seen(self):
        """What a bar and the pictures beside it showed while their cell was running: {bars, pictures}."""
        return self.browser.execute_script("return window.seen")

    def pictures(self):
        """The pictures that the notebook shows, as elements; one that is broken is left out."""
        return [picture for picture in self.find(".jp-OutputArea-output img")
                if self.browser.execute_script("return arguments[0].decode().then(() => true, () => false)", picture)]


def errors(cells):
    """Texts of the tracebacks, and of what went to stderr."""
    kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
    return [output["text"] for cell in cells for output in cell["outputs"] if output["kind"] in kinds]
