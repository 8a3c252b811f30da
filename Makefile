# The commands of the README. Each does its own set-up in .venv/; only Python >= 3.11, git and make must be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
DEMO := runs/demo

.PHONY: help demo test check bench format schemas clean

help:
	@echo "make demo    the whole line on the built-in domain: teacher, cache, two students, report"
	@echo "make test    all tests"
	@echo "make check   style, types, structure"
	@echo "make bench   the measurements of the README (minutes)"
	@echo "make schemas the JSON Schemas of all configs, for editors"

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "missing: $(PYTHON) (Python 3.11 or newer; or make PYTHON=/path/to/python)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "missing: Python 3.11 or newer, got $$($(PYTHON) --version); use make PYTHON=/path/to/python"; exit 2; }
	@command -v git >/dev/null || { echo "missing: git"; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "missing: Python's venv module (Debian and Ubuntu: apt-get install python3-venv)"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: $(READY)
	@rm -rf $(DEMO)
	$(BIN)/python -m stage1_teacher capture stage1_teacher/configs/demo.yaml
	$(BIN)/python -m stage1_teacher capture stage1_teacher/configs/demo-held-out.yaml
	$(BIN)/python -m cache verify $(DEMO)/cache --level deep
	$(BIN)/python -m cache inspect $(DEMO)/cache
	@echo "# the two students train side by side, a core each"
	OMP_NUM_THREADS=1 $(BIN)/python -m stage2_student train stage2_student/configs/demo-distilled.yaml & distilled=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m stage2_student train stage2_student/configs/demo-cross-entropy.yaml && wait $$distilled
	$(BIN)/python -m eval run eval/configs/demo.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_configs.py

bench: $(READY)
	$(BIN)/python -m benchmarks.cache_reading
	$(BIN)/python -m benchmarks.cache_sharing
	$(BIN)/python -m benchmarks.cache_order
	$(BIN)/python -m benchmarks.cache_tail_nodes --teacher shared/embedded_teacher --corpus shared/embedded_families.py
	$(BIN)/python -m benchmarks.stage1_capture
	$(BIN)/python -m benchmarks.stage2_step

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(READY)
	$(BIN)/python docs/make_schemas.py

clean:
	rm -rf $(VENV) runs build dist *.egg-info
