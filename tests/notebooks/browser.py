"""A headless Chromium that opens pages, runs JavaScript in them, and reports every request."""

import json
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome",
         "msedge", "microsoft-edge")
# No address has a host: the browser can open files and nothing else. Many machines that run tests
# do so as root and have little shared memory; Chromium's sandbox and its default would stop there.
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0",
         "--remote-allow-origins=*", "--window-size=1280,720")


def program():
    """The path of an installed browser, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One browser process with one page, spoken to in the Chrome DevTools Protocol.

    requests, failures: the addresses that the page has asked for since `open`, and why some of
    them were not loaded.
    """

    def __init__(self, folder, seconds=300):
        from websocket import create_connection  # comes with jupyter
        self.process = subprocess.Popen([program(), *FLAGS, f"--user-data-dir={folder}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = folder / "DevToolsActivePort"     # written when the browser is ready
        until = time.monotonic() + seconds
        while not (port.is_file() and port.read_text(encoding="utf-8").count("\n")):
            if time.monotonic() > until or self.process.poll() is not None:
                self.process.kill()
                raise TimeoutError(f"{program()} did not start in {seconds} s")
            time.sleep(0.1)
        number, path = port.read_text(encoding="utf-8").splitlines()[:2]
        self.socket = create_connection(f"ws://127.0.0.1:{number}{path}", timeout=seconds)
        self.count, self.session, self.requests, self.failures = 0, {}, [], []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=1280, height=720,
                  deviceScaleFactor=1, mobile=False)

    def call(self, method, **parameters):
        """Call a method of the protocol -> its result; note the requests of pages meanwhile."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters,
                                     **self.session}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("method") == "Network.loadingFailed":
                self.failures.append(message["params"]["errorText"])
            if message.get("id") == self.count:
                assert "error" not in message, message
                return message["result"]

    def open(self, address):
        """Open a page; what it loads goes on loading."""
        self.requests, self.failures = [], []
        self.call("Page.navigate", url=address)

    def run(self, expression):
        """The value of a JavaScript expression in the page; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def close(self):
        """End the browser."""
        self.socket.close()
        self.process.kill()
        self.process.wait()
