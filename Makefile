# Every target makes .venv and installs what it needs; nothing is done twice.
#
#   make demo [FILES="my.jpg my.wav"]   the tour on the built-in checkpoint, one HTML page
#   make test                           lint and the quick tests
#   make test-full                      lint and all tests (gpu and browser where there is one)
#   make test-triton36                  the kernels' tests on the oldest triton, 3.6
#   make lint                           ruff, import-linter, mypy
#   make clean                          removes caches and outputs, keeps .venv
#
# TORCH_ARGS goes to the installation of torch alone, e.g. an index of CPU-only wheels.

PYTHON ?= python3
TORCH_ARGS ?=
WORKERS ?= 2
FILES ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet
STAMPS := .venv/.stamps
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := test
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: demo test test-full test-triton36 lint clean

# torch first and alone: afterwards it is satisfied, and no other package replaces it.
$(STAMPS)/torch: constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS)
	@echo "installing torch"
	@$(PIP) $(TORCH_ARGS) "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(STAMPS)/demo: $(STAMPS)/torch $(INPUTS)
	@echo "installing polyglyph[eval,speech]"
	@$(PIP) -c constraints.txt -e '.[eval,speech]'
	@touch $@

# encodec is a peer in the tests; its dependency torchaudio breaks beside a CPU-only torch.
$(STAMPS)/test: $(STAMPS)/torch $(INPUTS)
	@echo "installing polyglyph[dev,eval,speech,kernels]"
	@$(PIP) -c constraints.txt -e '.[dev,eval,speech,kernels]'
	@$(PIP) --no-deps "$$(grep '^encodec==' constraints.txt)"
	@touch $@ $(STAMPS)/demo

# Only triton and numpy are other ones (3.6 doesn't run beside numpy 2.4); the rest is that of .venv.
BIN36 := .venv-triton36/bin
$(STAMPS)/triton36: $(STAMPS)/test
	@echo "installing triton 3.6.0"
	@$(BIN)/python -m venv .venv-triton36
	@$(BIN36)/python -m pip install --quiet --no-deps triton==3.6.0 numpy==2.3.5
	@rest=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  here=$$($(BIN36)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  echo "import site; site.addsitedir('$$rest')" >"$$here/rest.pth"
	@touch $@

demo: $(STAMPS)/demo
	@$(BIN)/polyglyph demo -f -o demo $(FILES)

# Two test processes with one thread each; more threads than cores make torch crawl.
test test-full test-triton36: export OMP_NUM_THREADS = 1

lint: $(STAMPS)/test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/lint-imports --no-cache >.venv/imports.log 2>&1 || { cat .venv/imports.log; exit 1; }
	@$(BIN)/mypy --no-error-summary

test: lint
	@$(BIN)/pytest -q -n $(WORKERS)

test-full: lint
	@$(BIN)/pytest -q -n $(WORKERS) -m "slow or not slow" --durations 20

test-triton36: $(STAMPS)/triton36
	@$(BIN36)/python -m pytest -q -n $(WORKERS) -m "slow or not slow" \
	  tests/kernels/test_interpreter.py tests/kernels/test_compiling.py

clean:
	@rm -rf build dist demo out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find polyglyph tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
