READY := .venv/.ready

.PHONY: help demo test test-browser test-forks test-libraries test-torch lint docs peers clean

help:
	@echo 'make demo    quantize a detector, end to end; make demo DATA=/path/to/voc for'
	@echo '             data of yours, DEMO_ARGS=--short for a shorter run'
	@echo 'make test    run the tests'
	@echo 'make test-browser  the report page in a Chromium, which npm fetches'
	@echo 'make test-forks  the tests of engine, runners and detectors on OneDL'\''s forks'
	@echo 'make test-libraries  models of MMPose, MMRotate, MMOCR, MMAction2 and MMDetection3D'
	@echo 'make test-torch TORCH=2.1.2  the tests of the engine on another torch'
	@echo 'make lint    rules, format, types, and which folder may import which'
	@echo 'make docs    the documentation as a site, in docs/_build/html'
	@echo 'make peers   compare with other libraries, CHECKPOINT=float.pth; of another'
	@echo '             detector, with CONFIG=configs/pretrained/yolox_nano.py say'
	@echo 'make clean   remove caches and build output; .venv and work_dirs stay'
	@echo
	@echo 'The first three set up .venv when it is not there. PYTHON=/path/to/python picks'
	@echo 'its interpreter; PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL tell pip where a CPU'
	@echo 'build of torch is, where the registry has only one for CUDA.'

demo: $(READY)
	.venv/bin/python demo/demo.py $(if $(DATA),--data '$(DATA)') $(DEMO_ARGS)

test: $(READY)
	.venv/bin/python -m pytest tests

# Playwright's own browsers come from a host of theirs, this one from npm's registry.
BROWSER := $(CURDIR)/.browser

test-browser: $(READY)
	PYTHON='$(CURDIR)/.venv/bin/python' bash tests/report/page/setup_browser.sh '$(BROWSER)'
	PYTHONPATH='$(BROWSER)/python' MMQUANT_BROWSER='$(BROWSER)/chromium' \
		LD_LIBRARY_PATH='$(BROWSER)/lib' \
		.venv/bin/python -m pytest tests/report/page/test_browser.py

# The forks have an environment of their own: their import names are OpenMMLab's.
FORKS_TESTS := $(addprefix tests/,config record plan quantizers execute hooks methods \
	runners wrappers export/configs)

test-forks:
	VENV=.venv-forks FORKS=1 PEERS= OTHERS= PYTHON='$(PYTHON)' bash requirements/setup_env.sh
	.venv-forks/bin/python -m pytest $(FORKS_TESTS)

# So have they: their own requirements would change those of MMDetection.
test-libraries:
	VENV=.venv-libraries OTHERS=1 FORKS= PEERS= PYTHON='$(PYTHON)' \
		bash requirements/setup_env.sh
	.venv-libraries/bin/python -m pytest tests/runners/test_libraries.py \
		tests/runners/test_mmyolo.py tests/runners/test_sister_libraries.py \
		tests/tools/test_sweep_libraries.py

# The engine alone: the rest needs an MMCV that is compiled for that torch.
TORCH_TESTS := $(addprefix tests/,config record plan quantizers methods execute)
# An environment is of one interpreter.
TORCH_VENV = .venv-torch-$(TORCH)$(addprefix -,$(notdir $(PYTHON)))

test-torch:
	VENV='$(TORCH_VENV)' TORCH='$(TORCH)' PYTHON='$(PYTHON)' \
		bash requirements/setup_torch.sh
	'$(TORCH_VENV)/bin/python' -m pytest $(TORCH_TESTS)

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/mypy

docs: $(READY)
	.venv/bin/python -m sphinx -q -W --keep-going -c docs/en docs docs/_build/html

# The other libraries have an environment of their own.
peers:
	VENV=.venv-peers PEERS=1 FORKS= OTHERS= PYTHON='$(PYTHON)' bash requirements/setup_env.sh
	.venv-peers/bin/python benchmarks/peers.py \
		$(or $(CONFIG),configs/bccd/ssd_mobilenet_fpn.py) '$(CHECKPOINT)' \
		--json benchmarks/results/peers.json

SETUP := requirements/setup_env.sh $(wildcard requirements/*.txt) setup.py setup.cfg pyproject.toml

$(READY): $(SETUP) mmquant_jacinto/quantizers/kernels/csrc/kernels.c
	VENV=.venv PEERS= FORKS= OTHERS= PYTHON='$(PYTHON)' bash requirements/setup_env.sh
	@touch $@

clean:
	rm -rf build dist *.egg-info docs/_build demo_output .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
