# Each target makes .venv and installs what it needs by itself, once.
PYTHON ?= python3
BIN := .venv/bin
STAMPS := .venv/stamps

.PHONY: demo test check bench docs clean

demo: $(STAMPS)/package  ## three networks, what each withstands, one page: runs/demo/report.html
	$(BIN)/bessemer demo

test: $(STAMPS)/dev  ## every test that this machine can run, a file at a time on each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(STAMPS)/dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMPS)/dev  ## how fast, against the bare loop and against peers
	$(BIN)/python benchmarks/run.py

docs: $(STAMPS)/docs  ## the API as HTML pages in build/docs
	$(BIN)/python -m pdoc --output-directory build/docs bessemer

clean:
	rm -rf .venv build dist src/*.egg-info

$(STAMPS)/venv:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	mkdir -p $(STAMPS)
	touch $@

# one installation per set of extras; a change of the requirements installs again
$(STAMPS)/package: pyproject.toml constraints.txt | $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# with the peers that tests and benchmarks compare with; torchattacks asks for torchvision, but works without it
$(STAMPS)/dev: pyproject.toml constraints.txt | $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench,sweep]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps torchattacks
	touch $@ $(STAMPS)/package

$(STAMPS)/docs: pyproject.toml constraints.txt | $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@ $(STAMPS)/package
