PYTHON ?= python3.11
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
PIP := $(INSTALL) --constraint .ci/constraints.txt
apt_install = (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(1))

.PHONY: run test verified lint types tests soak fuzz audit definitions browser extras sample lock clean

run: .venv/ready  ## Set up, then run the whole lineage on the bundled sample.
	$(BIN)/rec-pipeline run

test: lint types definitions tests  ## Set up, then lint, types, definitions and tests.

verified:  ## Set up from files of known SHA-256 alone: Python 3.11, Linux on x86-64, torch for the processor.
	$(PYTHON) -m venv --clear .venv
	$(INSTALL) --require-hashes --no-deps --requirement .ci/hashes.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	$(BIN)/pip check
	touch .venv/ready

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/ready
	$(BIN)/mypy

definitions: .venv/ready
	$(BIN)/dg check defs

tests: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0  # one thread each: two processes fill two cores

soak: .venv/ready  ## Random faults against publication, serving and whole runs, 30 minutes each; prints their tables.
	$(BIN)/python -m rec_pipeline_tests.faults.soak --minutes 30
	$(BIN)/python -m rec_pipeline_tests.faults.soak_serving --minutes 30
	$(BIN)/python -m rec_pipeline_tests.faults.soak_runs --minutes 30

MINUTES ?= 10
fuzz: .venv/ready  ## Hostile bytes for everything that reads, for MINUTES; what fails becomes a file the suite replays.
	$(BIN)/python -m rec_pipeline_tests.security.fuzz --minutes $(MINUTES)

audit: .venv/ready  ## Known holes in what is installed, and a list of it (sbom.json); needs the network.
	$(PYTHON) -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r .ci/known_bad.txt | grep -E 'PYSEC|GHSA|CVE' \
		|| { echo 'not audited: the advisories cannot be reached, or a known hole was not found in them' >&2; exit 1; }
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r .ci/constraints.txt --format cyclonedx-json --output sbom.json

browser:  ## Install the browser of the UI tests (Debian, Ubuntu); without it those tests skip.
	command -v chromium >/dev/null || $(call apt_install,chromium)

extras: .venv/ready  ## Install what the tests of Ray, S3, Kubernetes, Postgres and Redis need (Debian, Ubuntu); else they skip.
	$(PIP) --editable '.[cluster]' kubernetes-validate 'moto[server]'
	command -v redis-server >/dev/null || $(call apt_install,redis-server)
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || $(call apt_install,postgresql)

sample: .venv/ready  ## Regenerate the bundled sample.
	$(BIN)/python -m rec_pipeline.engine.data.sample data/sample

lock: extras  ## Write the versions of this environment, and the hashes of their files, for the next.
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > .ci/constraints.txt
	$(INSTALL) --ignore-installed --no-deps --dry-run --report - --requirement .ci/constraints.txt setuptools \
		| $(BIN)/python .ci/hashes.py > .ci/hashes.txt

clean:  ## Remove the environment and everything the project made, the sample excepted.
	-$(BIN)/rec-pipeline stop
	rm -rf .venv $(filter-out data/sample,$(wildcard data/*))

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[dev]'
	touch $@
