# One rule for each figure that the topics have listed: the caption in a report cannot depend on wildcards.
for figure, how in FIGURES.items():
    if how is None:
        continue
    title = how.title or figure.rpartition("/")[2]

    rule:
        name:
            f"draw_{title.replace('-', '_')}"
        input:
            **how.tables,
            beside=how.beside,
            code=code(f"plot {how.command}"),
        output:
            svg=report(
                drawn(figure)[0],
                caption=f"../report/{title}.rst",
                category=how.category,
            ),
            beside=drawn(figure)[1:],
        log:
            f"logs/draw/{title}.log",
        conda:
            ENVIRONMENT
        params:
            command=how.command,
            flags=flags(**how.tables, **how.options),
        shell:
            "lumoe plot {params.command} {params.flags} --output {output.svg} 2> {log}"
