# `make demo` and `make test` set up everything they need in .venv, on a machine that has Python 3.11 or newer.
PYTHON ?= python3
# the CPU build; set TORCH to another requirement (a CUDA build) where there is a GPU
TORCH ?= torch==2.13.0
BIN := .venv/bin
DEMO ?= demo
# TensorRT's builder is told the same by every version; these two are held to it beside the installed one, 1.3 MB each
BINDINGS := 10.13.3.9.post1 10.16.1.11
PACKAGES := benchmarks calibrate compile models plugins profiles runtime

.PHONY: demo test check pytest bindings clean

# compiling all of what is installed takes a minute; Python compiles what is imported
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --no-compile --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install -qq --no-compile "$(TORCH)"
	$(BIN)/python -m pip install -qq --no-compile --no-build-isolation -e ".[dev,t5]"
	touch $@

demo: .venv/ready
	$(BIN)/calibrate --model tiny --prompts profiles/tiny/prompts.txt --num-prompts 12 \
		--target-speedup 2.0 --out $(DEMO)/calibration
	$(BIN)/build-engine --schedule $(DEMO)/calibration/schedule.yaml --out $(DEMO)/engine
	$(BIN)/build-engine --policy dense --out $(DEMO)/dense
	$(BIN)/run-engine --engine $(DEMO)/engine --prompts profiles/tiny/demo_prompts.txt --output $(DEMO)/images
	$(BIN)/python -m toprovar.benchmarks.side_by_side --engines $(DEMO)/dense $(DEMO)/engine \
		--prompts profiles/tiny/demo_prompts.txt --same-seed --picture $(DEMO)/side_by_side.png
	@echo
	@echo "images         $(DEMO)/images/"
	@echo "side by side   $(DEMO)/side_by_side.png"
	@echo "schedule       $(DEMO)/calibration/schedule.yaml"
	@echo "report         $(DEMO)/calibration/report.html"

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p .venv/typing && ln -sfn ../.. .venv/typing/toprovar
	cd .venv/typing && MYPYPATH=. ../bin/mypy --config-file ../../pyproject.toml \
		-m toprovar.cli $(PACKAGES:%=-p toprovar.%)

# what cannot be fetched is told, and its tests skip
bindings: .venv/ready
	@for version in $(BINDINGS); do \
		[ -d .venv/bindings/$$version ] && continue; \
		rm -rf .venv/bindings.part; mkdir -p .venv/bindings; \
		$(BIN)/python -m pip install -qq --no-deps --retries 1 --timeout 10 --target .venv/bindings.part \
			tensorrt-cu13-bindings==$$version && mv .venv/bindings.part .venv/bindings/$$version || \
			echo "tensorrt-cu13-bindings $$version cannot be fetched here; its tests skip"; \
	done

# types are checked beside the first tests
test: bindings
	$(MAKE) --no-print-directory -j 2 check pytest

pytest: .venv/ready
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf .venv $(DEMO) build dist *.egg-info
