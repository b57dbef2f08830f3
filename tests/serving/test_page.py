"""The page at `/` in a headless browser: `make test-browser`."""

import shutil

import pytest

from hf_distill import load_predictor
from hf_distill.lengths import READING
from tests.data.pair_tokenizer import make_pair_tokenizer
from tests.deployment.conftest import tiny_student
from tests.question_answering import answering_student, make_question_tokenizer
from tests.serving.running import RunningService

pytestmark = pytest.mark.browser

SECONDS = 10
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync", "--disable-quic"]


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(autouse=True)
def _fresh_log(browser):
    browser.get_log("browser")


def wait_for(browser, selector, number=1):
    """Waits until there are `number` elements, and returns them."""
    from selenium.webdriver.support.ui import WebDriverWait

    def found(driver):
        elements = driver.find_elements("css selector", selector)
        return elements if len(elements) == number else None

    return WebDriverWait(browser, SECONDS).until(found)


def predict(browser, service, text):
    browser.get(f"http://127.0.0.1:{service.port}/")
    browser.find_element("id", "text").send_keys(text)
    browser.find_element("id", "ask").click()


def errors_in(browser):
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_label_scores_and_latency(browser, service, int8):
    predict(browser, service, "w5 w6")
    (panel,) = wait_for(browser, ".model:has(.latency)")
    (expected,) = load_predictor(int8, threads=1).predict(["w5 w6"], top_k=None)
    assert panel.find_element("css selector", "h2").text == "student"
    assert panel.find_element("css selector", ".about").text == "bert-int8, onnx-int8"
    assert panel.find_element("css selector", ".label").text == expected[0]["label"]
    shown = [row.text.split() for row in panel.find_elements("css selector", ".score")]
    assert shown == [[own["label"], f"{own['score']:.3f}"] for own in expected]
    assert panel.find_element("css selector", ".latency").text.endswith(" ms")
    assert errors_in(browser) == []


def test_a_pair_has_two_fields(browser, service, tmp_path):
    """The second field is shown for a model that reads pairs, and only for one."""
    browser.get(f"http://127.0.0.1:{service.port}/")
    assert not browser.find_element("id", "pair").is_displayed()
    model = tiny_student("bert", "sequence classification", id2label={0: "relevance"})
    setattr(model.config, READING, {"reads_pairs": True})
    model.save_pretrained(tmp_path / "reranker")
    make_pair_tokenizer().save_pretrained(tmp_path / "reranker")
    (expected,) = load_predictor(tmp_path / "reranker").predict([("w5 w6", "w7")])
    with RunningService(tmp_path, tmp_path / "reranker", "--workers", "1") as of_pairs:
        browser.get(f"http://127.0.0.1:{of_pairs.port}/")
        wait_for(browser, "#pair:not([hidden])")
        browser.find_element("id", "text").send_keys("w5 w6")
        browser.find_element("id", "pair").send_keys("w7")
        browser.find_element("id", "ask").click()
        (panel,) = wait_for(browser, ".model:has(.latency)")
        assert panel.find_element("css selector", ".label").text == "relevance"
        assert panel.find_element("css selector", ".number").text == f"{expected['score']:.3f}"
        assert errors_in(browser) == []


def test_a_text_is_shown_as_text(browser, service):
    """A text is shown as text, not as HTML. A truncated text is marked."""
    predict(browser, service, "<img src=x onerror=alert(1)> " * 50)
    wait_for(browser, ".model:has(.latency)")
    wait_for(browser, ".cut")
    assert browser.find_elements("css selector", "img") == []


def test_an_error_is_shown(browser, service):
    predict(browser, service, "  ")
    (error,) = wait_for(browser, ".model .error")
    assert error.text == "Text 0: is empty."


def test_student_and_teacher_side_by_side(browser, int8, student, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1", "--teacher", str(student)) as service:
        service.wait_until(service.is_ready)
        predict(browser, service, "w5 w6")
        panels = wait_for(browser, ".model:has(.latency)", 2)
        assert [panel.get_attribute("id") for panel in panels] == ["student", "teacher"]
        left, right = (panel.rect for panel in panels)
        assert left["y"] == right["y"]
        assert left["x"] + left["width"] <= right["x"]
        assert errors_in(browser) == []


def test_a_question_and_its_context(browser, tmp_path):
    student = answering_student(unanswerable=True, no_answer_threshold=-100.0)  # always: no answer
    student.save_pretrained(tmp_path / "answering")
    make_question_tokenizer().save_pretrained(tmp_path / "answering")
    with RunningService(tmp_path, tmp_path / "answering", "--workers", "1") as service:
        service.wait_until(service.is_ready)
        browser.get(f"http://127.0.0.1:{service.port}/")
        (context,) = wait_for(browser, "#pair:not([hidden])")
        assert browser.find_element("id", "text").get_attribute("placeholder") == "Question"
        browser.find_element("id", "text").send_keys("w5")
        context.send_keys("w6 w7")
        browser.find_element("id", "ask").click()
        (panel,) = wait_for(browser, ".model:has(.latency)")
        assert panel.find_element("css selector", ".label").text == "(no answer)"
        shown = [row.text.rsplit(maxsplit=1)[0] for row in panel.find_elements("css selector", ".score")]
        assert shown[0] == "(no answer)"
        assert set(shown[1:]) == {"w6", "w7", "w6 w7"}
        assert errors_in(browser) == []


def test_the_token_is_asked_for(browser, int8, tmp_path):
    (tmp_path / "token").write_text("s3cret")
    with RunningService(tmp_path, int8, "--workers", "1", "--token-file", str(tmp_path / "token")) as service:
        predict(browser, service, "w5")
        (problem,) = wait_for(browser, "#problem:not(:empty)")
        assert problem.text == "The bearer token is missing or wrong."
        browser.find_element("id", "token").send_keys("s3cret")
        browser.find_element("id", "ask").click()
        wait_for(browser, ".model:has(.latency)")


def test_the_documentation_works_without_a_network(browser, service):
    browser.get(f"http://127.0.0.1:{service.port}/docs")
    wait_for(browser, "#operations-default-Predict_with_the_student_predict_post")
    assert errors_in(browser) == []
