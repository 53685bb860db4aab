"""Opens pages of the trainer in Chromium, uses them as a person does, and prints what it saw as JSON."""

import json
import os
import shutil
import sys

from playwright.sync_api import sync_playwright

CHART = "figure[data-chart='{}']"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def until(page, holds):
    """Waits until an expression holds. Not by the page itself, whose policy forbids it to evaluate text."""
    for _ in range(400):
        if page.evaluate(holds):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(holds)


def number(page, title):
    """The place of a chart by its title."""
    titles = page.locator("figure[data-chart] figcaption b").all_inner_texts()
    figures = page.locator("figure.chart").evaluate_all("all => all.map(f => f.dataset.chart)")
    return figures[titles.index(title)]


def seen(chart):
    """What a chart shows: its curves, its legend, and the words below it."""
    return {
        "curves": chart.locator("svg polyline:not(.raw)").evaluate_all("all => all.map(p => p.getAttribute('points'))"),
        "legend": chart.locator(".legend button").all_inner_texts(),
        "texts": chart.locator("svg text").all_text_contents(),
        "where": chart.locator(".where").inner_text(),
        "marks": chart.locator("svg .mark").count(),
        "best": chart.locator("svg .best").count(),
        "label": chart.locator("svg").get_attribute("aria-label"),
    }


def report(page, path):
    page.goto("file://" + path)
    losses = page.locator(CHART.format(number(page, "Losses")))
    found = {"first": seen(losses)}
    found["empty"] = page.locator("figure[data-chart]").evaluate_all(
        "all => all.filter(f => !f.querySelector('svg polyline')).length"
    )
    box = losses.locator("svg").bounding_box()
    # At the left end of the curves.
    page.mouse.move(box["x"] + box["width"] * 0.12, box["y"] + box["height"] / 2)
    found["pointed"] = seen(losses)
    page.mouse.move(0, 0)
    losses.locator("svg").focus()
    page.keyboard.press("Home")
    found["home"] = seen(losses)
    page.keyboard.press("ArrowRight")
    found["right"] = seen(losses)
    page.keyboard.press("Escape")
    found["escaped"] = seen(losses)
    page.locator("input[name=axis][value=minutes]").check()
    found["time"] = seen(losses)
    page.locator("input[name=axis][value=steps]").check()
    page.get_by_label("smoothing of the curves").fill("0.9")
    found["smooth"] = seen(losses)
    page.get_by_label("smoothing of the curves").fill("0")
    losses.locator(".legend button").first.click()
    found["off"] = seen(losses)
    losses.locator(".legend button").first.click()
    found["on"] = seen(losses)
    probes = page.locator(CHART.format(number(page, "Linear probes")))
    found["probes"] = seen(probes)
    pictures = page.locator(".frames[data-kind='samples']")
    visible = "all => all.filter(i => !i.hidden).map(i => [i.alt, i.naturalWidth > 0])"
    found["newest"] = pictures.locator("img").evaluate_all(visible)
    pictures.locator("input").fill("0")
    found["oldest"] = pictures.locator("img").evaluate_all(visible)
    found["said"] = pictures.locator("output").inner_text()
    page.set_viewport_size({"width": 380, "height": 800})
    found["too_wide"] = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return found


def compare(page, path):
    page.goto("file://" + path)
    losses = page.locator(CHART.format(number(page, "Losses: D")))
    rows = page.locator("[data-part=settings] tbody tr").all_inner_texts()
    found = {"losses": seen(losses), "differ": rows}
    losses.scroll_into_view_if_needed()
    box = losses.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.95, box["y"] + box["height"] / 2)
    found["end"] = seen(losses)
    page.mouse.move(0, 0)
    losses.locator("svg").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    found["said"] = page.locator("#said").text_content()
    return found


def study(page, path):
    page.goto("file://" + path)
    charts = page.locator("figure.chart")
    return {"charts": charts.count(), "first": seen(charts.first)}


def watch(page, url, run):
    """`run` is a folder that is watched, of which the page hears."""
    page.goto(url)
    found = {"runs": page.locator("tbody th a").all_inner_texts()}
    found["sparks"] = page.locator("figure.spark svg polyline").count()
    page.locator("tbody th a").first.click()
    page.wait_for_selector("html[data-drawn]")
    losses = page.locator(CHART.format(number(page, "Losses")))
    found["before"] = seen(losses)
    losses.locator("svg").focus()
    with open(run + "/stats.jsonl") as file:
        last = json.loads(file.readlines()[-1])
    last.update(step=last["step"] + 100, loss_d=123.0)
    with open(run + "/stats.jsonl", "a") as file:
        file.write(json.dumps(last) + "\n")
    until(page, "document.querySelector('figure.chart .legend').innerText.includes('123')")
    found["after"] = seen(losses)
    found["focused"] = page.evaluate("document.activeElement.tagName")
    losses.locator(".legend button").first.focus()
    with open(run + "/stats.jsonl", "a") as file:
        file.write(json.dumps(dict(last, step=last["step"] + 100, loss_d=321.0)) + "\n")
    until(page, "document.querySelector('figure.chart .legend').innerText.includes('321')")
    found["legend_focused"] = page.evaluate("document.activeElement.tagName")
    # A picture that is written anew is shown anew.
    newest = "[...document.querySelectorAll('[data-kind=samples] img')].pop()"
    page.locator(".frames[data-kind='samples']").scroll_into_view_if_needed()
    until(page, f"{newest}.naturalWidth > 0")
    address = page.evaluate(f"{newest}.src")
    # As the trainer writes them: aside, and renamed.
    shutil.copy(run + "/images/reals.png", run + "/images/aside")
    os.replace(run + "/images/aside", run + "/images/samples.png")
    until(page, f"{newest}.src !== {json.dumps(address)} && {newest}.naturalWidth > 0")
    # A picture is asked for when it is shown.
    shutil.copy(run + "/images/samples.png", run + "/images/samples-00000001.png")
    page.wait_for_selector(".frames[data-kind='samples'] img[alt='step 1']", state="attached")
    page.locator(".frames[data-kind='samples'] input").fill("0")
    until(page, "[...document.querySelectorAll('img')].find(i => i.alt === 'step 1').naturalWidth > 0")
    shutil.move(run, run + "-away")
    until(page, "document.querySelector('#told').textContent !== ''")
    found["gone"] = page.locator("#told").text_content()
    shutil.move(run + "-away", run)
    until(page, "document.querySelector('#told').textContent === ''")
    # A run that comes, and one that goes.
    page.locator("header a").click()
    page.wait_for_selector("html[data-drawn]")
    shutil.copytree(run, run + "-too")
    until(page, "document.querySelectorAll('tbody th a').length === 2")
    shutil.rmtree(run + "-too")
    until(page, "document.querySelectorAll('tbody th a').length === 1")
    return found


def main():
    what, *args = sys.argv[1:]
    complaints, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(20_000)
        page.on("console", lambda said: complaints.append(said.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        found = globals()[what](page, *args)
        browser.close()
    # A run that was moved away is not found, and the browser says so.
    found["complaints"] = [said for said in complaints if what != "watch" or "404" not in said]
    found["requests"] = [url for url in requests if not url.startswith("data:")]
    print(json.dumps(found))


main()
