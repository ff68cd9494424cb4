"""A real Chromium without a screen, and what a visitor does with it.

Debian's packages ``chromium`` and ``chromium-driver`` are taken, and installed where they are missing and may be: by root with apt-get. Elsewhere the tests
fail and name the packages; a machine that has no apt-get skips them with that reason.
"""

import base64
import os
import shutil
import subprocess
import time
import urllib.request

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PACKAGES = ("chromium", "chromium-driver")
NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome"), "chromium-driver": ("chromedriver",)}
PATIENCE = 300.0
"""Seconds until something that should come counts as missing: a machine may be slow, and a first answer compiles."""


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def find(package):
    return next((path for name in NAMES[package] if (path := shutil.which(name))), None)


def executables():
    """The paths of the browser and its driver."""
    missing = [package for package in PACKAGES if find(package) is None]
    if missing and shutil.which("apt-get") is None:
        pytest.skip(f"there is no {' or '.join(missing)}, and no apt-get to install it: install Chromium and chromedriver to run these tests")
    if missing and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, timeout=600, check=False)
    missing = [package for package in PACKAGES if find(package) is None]
    if missing:
        pytest.fail(f"the page is tested in a real browser, and Debian's packages for it are missing: run apt-get install {' '.join(missing)} as root")
    return [find(package) for package in PACKAGES]


class Visitor:
    """A browser window with the page."""

    def __init__(self, address, camera):
        browser, driver = executables()
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={camera}",
        ):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_page_load_timeout(PATIENCE)
        self.address = address

    def open(self, width=1360, height=900, theme="light"):
        """Open the page anew, as another visitor."""
        self.resize(width, height)
        self.driver.get(f"{self.address}?__theme={theme}")
        self.wait(lambda: self.all("#ux-tabs button[role=tab]"), "the page has no tabs")
        return self

    def resize(self, width, height):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def all(self, selector):
        return [element for element in self.driver.find_elements(By.CSS_SELECTOR, selector) if element.is_displayed()]

    def wait(self, condition, what, seconds=PATIENCE):
        """Call a condition until it returns something true, and return that; the test fails after ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except (WebDriverException, IndexError):  # the page changed under it, or is not that far yet
                pass
            time.sleep(0.1)
        raise AssertionError(f"{what} (within {seconds:g} s); the page says: {self.text('body')[:1500]}")

    def element(self, selector):
        return self.wait(lambda: self.all(selector), f"{selector} is not to be seen")[0]

    def text(self, selector):
        """The text of an element that is there, in sight or not."""
        return self.driver.execute_script("const e = document.querySelector(arguments[0]); return e ? e.innerText : '';", selector)

    def click(self, selector):
        def press():
            element = self.all(selector)[0]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.wait(press, f"{selector} cannot be clicked")

    def tab(self, label):
        def press():
            for button in self.all("button[role=tab]"):
                if button.text.strip() == label:
                    button.click()
                    return True
            for more in self.all("button[aria-label='More tabs']"):
                more.click()
            for button in self.all(".overflow-dropdown button"):
                if button.text.strip() == label:
                    button.click()
                    return True
            return False

        self.wait(press, f"there is no tab {label}")

    def upload(self, identity, path):
        """Choose a file for a component."""
        self.element(f"#{identity}")
        self.wait(lambda: self.driver.find_elements(By.CSS_SELECTOR, f"#{identity} input[type=file]"), f"{identity} takes no file")[0].send_keys(str(path))

    def write(self, identity, words, enter=False):
        """Write into a line of text, in place of what is there."""
        line = self.element(f"#{identity} textarea, #{identity} input")
        line.send_keys(Keys.CONTROL, "a")
        line.send_keys(words)
        if enter:
            line.send_keys(Keys.ENTER)

    def choose(self, identity, label):
        """Choose one of a group of buttons."""
        self.wait(lambda: [e.click() or True for e in self.all(f"#{identity} label") if e.text.strip() == label], f"{identity} has no {label}")

    def click_at(self, identity, x, y):
        """Click on a picture at a place that is given as shares of its width and height."""
        picture = self.element(f"#{identity} img")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
        size = picture.size
        ActionChains(self.driver).move_to_element_with_offset(picture, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"])).click().perform()

    def source(self, selector):
        """The address of a picture or film that has come."""
        return self.wait(lambda: self.all(selector)[0].get_attribute("src"), f"{selector} shows nothing")

    def download(self, identity):
        """The content of the file that a button gives: Gradio's buttons click on a link that they make, whose address is noted here."""
        self.driver.execute_script("window.links = []; HTMLAnchorElement.prototype.click = function () { window.links.push(this.href) }")
        self.click(f"#{identity}")
        (address,) = self.wait(lambda: self.driver.execute_script("return window.links"), f"{identity} gives no file")
        with urllib.request.urlopen(address, timeout=PATIENCE) as answer:
            return answer.read()

    def drag(self, selector, places):
        """Draw a line through places that are given as shares of an element's width and height."""
        element = self.element(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        moves = ActionChains(self.driver, duration=50)
        for number, (x, y) in enumerate(places):
            moves.move_to_element_with_offset(element, round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
            if number == 0:
                moves.click_and_hold()
        moves.release().perform()

    def told(self, words):
        """Wait for an error with some words, and close it."""
        self.wait(lambda: any(words in e.text for e in self.all("[data-testid=toast-text]")), f"no error says {words!r}")
        self.wait(lambda: [e.click() or True for e in self.all("[data-testid=toast-close]")], "the error cannot be closed")
        self.wait(lambda: not self.all("[data-testid=toast-text]"), "the error does not go")

    def screenshot(self, path):
        found = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))
