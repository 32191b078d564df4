# Every table, figure and claim, from the corpora to claims.csv.  `snakemake --cores all` builds them all.
import sys

from snakemake.utils import min_version

from lumoe.pipeline.settings import validate
from lumoe.errors import UserError

min_version("9.0")


configfile: "config/default.yaml"


try:
    config = validate(config).model_dump()
except UserError as error:
    print(f"lumoe: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/corpora.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/quantization.smk"
include: "workflow/rules/perplexity.smk"
include: "workflow/rules/serving.smk"
include: "workflow/rules/adaptation.smk"
include: "workflow/rules/placement.smk"
include: "workflow/rules/true_scale.smk"
include: "workflow/rules/networks.smk"
include: "workflow/rules/pcnna.smk"
include: "workflow/rules/winograd.smk"
include: "workflow/rules/uncertainty.smk"
include: "workflow/rules/crosscheck.smk"
include: "workflow/rules/accuracy.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/figures.smk"


rule all:
    # Every table and every figure, and at the end the claims that rest on them.
    default_target: True
    input:
        tables=TABLES,
        figures=[*map(drawn, FIGURES)],
        verdicts=rules.print_claims.output,


onsuccess:
    shell(
        f"lumoe provenance record --results {RESULTS} --seed {SEED} --output {RESULTS}/provenance.csv"
    )
