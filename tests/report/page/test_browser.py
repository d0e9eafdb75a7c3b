"""The page in a real browser, without a window.

Skipped where Playwright or a browser is not installed. ``MMQUANT_BROWSER`` is the path
of a Chromium, where Playwright has none of its own; ``make test-browser`` fetches one.
"""

import os

import pytest
import torch
from reports import made_up
from toy_models import ToyNet, calibrated, randomize_norms

from mmquant_jacinto.report import Measurement, describe
from mmquant_jacinto.report.page.render import render

playwright = pytest.importorskip(
    'playwright.sync_api', reason='Playwright is not installed'
)
# What a container without user namespaces and shared memory needs.
ARGUMENTS = ['--no-sandbox', '--single-process', '--no-zygote', '--headless=shell']


@pytest.fixture
def browser():
    with playwright.sync_playwright() as started:
        path = os.environ.get('MMQUANT_BROWSER')
        try:
            found = started.chromium.launch(
                executable_path=path, args=ARGUMENTS if path else []
            )
        except playwright.Error as error:
            if path:
                raise
            pytest.skip(f'no browser: {str(error).splitlines()[0]}')
        yield found
        found.close()


@pytest.fixture
def page(browser, tmp_path):
    file = tmp_path / 'report.html'
    file.write_text(render(made_up(40)))
    found = browser.new_page(viewport=dict(width=1200, height=900))
    found.errors = []
    found.on('pageerror', lambda error: found.errors.append(str(error)))
    found.on('request', lambda request: found.errors.append(request.url))
    found.goto(file.as_uri())
    found.errors.remove(file.as_uri())
    yield found
    assert found.errors == []
    found.close()


def column(page, number):
    cells = page.locator(f'#layer-table tbody tr td:nth-child({number})')
    return cells.all_inner_texts()


def test_a_heading_sorts_and_sorts_back(page):
    page.click('th[data-key=own]')
    values = [float(text) for text in column(page, 4)]
    assert values == sorted(values) and len(values) == 40
    page.click('th[data-key=own]')
    assert [float(text) for text in column(page, 4)] == sorted(values, reverse=True)
    # What has no number is last, either way.
    for _ in range(2):
        page.click('th[data-key=inherited]')
        assert column(page, 5)[-1] == '–'


def test_a_row_opens_its_layer(page, tmp_path):
    assert not page.locator('#detail').is_visible()
    page.locator('#layer-7 td').first.click()
    detail = page.locator('#detail')
    assert detail.locator('h3').inner_text() == 'backbone.layer7/conv2d'
    assert detail.locator('svg').count() == 3
    assert detail.locator('svg').first.locator('rect').count() == 80
    picture = page.screenshot(path=tmp_path / 'page.png')
    assert len(picture) > 10_000


def test_a_link_leads_to_the_row(page):
    page.locator('#causes a').first.click()
    assert page.locator('#detail h3').inner_text() == 'backbone.layer0/conv2d'
    assert 'open' in page.locator('#layer-0').get_attribute('class')


def test_names_are_filtered(page):
    page.fill('#filter', 'layer3')
    assert page.locator('#layer-table tbody tr:visible').count() == 11
    assert page.locator('#count').inner_text() == '11 of 40 layers'


def test_the_page_of_a_calibration(browser, tmp_path):
    net, x = randomize_norms(ToyNet()).eval(), torch.randn(2, 3, 16, 16)
    quantization = calibrated(net, x, mode='ptq')
    report = describe(quantization, 'toy', 'calibration')

    def run(behaviour, batch):
        quantization.executor.behaviour = behaviour
        return net(batch)

    Measurement(quantization, run).fill(report, [x])
    file = tmp_path / 'report.html'
    file.write_text(render(report))
    page = browser.new_page()
    page.goto(file.as_uri())
    page.click('th[data-key=share]')
    page.click('th[data-key=share]')
    worst = page.locator('#layer-table tbody tr').first
    assert worst.locator('td').first.inner_text() == report.costliest(1)[0].name
    worst.click()
    assert page.locator('#detail rect').count() >= 80
    assert 'per_channel=True' in page.locator('#trials').inner_text()
    page.screenshot(path=tmp_path / 'page.png', full_page=True)
    assert (tmp_path / 'page.png').stat().st_size > 10_000
