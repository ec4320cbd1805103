# make tour: install and improve a model on real text.  make test: everything the project asserts.
VENV   ?= .venv
PYTHON ?= python3
PY     := $(VENV)/bin/python
OUT    ?= run

.PHONY: setup setup-bench tour test test-browser lint docs claims bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

setup-bench: setup
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,bench]'

tour: setup
	$(VENV)/bin/maypole tour --out $(OUT)

test: setup lint
	$(PY) -m pytest -n 2 --dist worksteal
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		echo "no Chromium: the page's tests were skipped; apt-get install chromium"

# The page's tests alone; without Chromium they fail.
test-browser: setup
	MAYPOLE_BROWSER=required $(PY) -m pytest tests/serve/test_serve_page_files.py tests/serve/test_serve_playground*.py

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

docs: setup
	$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	$(PY) docs/render.py
	$(VENV)/bin/zensical build --strict
	$(PY) docs/check_site.py site

claims: setup
	$(VENV)/bin/maypole claim --all --results docs/results/claims

bench: setup-bench
	set -e; for script in $$(ls benchmarks/*.py | grep -v side_by_side); do $(PY) $$script --quick; done

clean:
	rm -rf build dist site .cache *.egg-info .pytest_cache .ruff_cache
