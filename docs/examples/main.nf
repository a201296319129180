// Heat maps, then the stage that reads them:
//
//   nextflow run docs/examples/main.nf --conf /repo/configs/gemex/exp_01_vqa.conf --results /scratch/maps
//
// The run writes to params.results itself, outside Nextflow's work folder: a task's folder is new at every attempt, and
// a run continues only in the folder that it was started in. Paths must not hold single quotes.

params.repository = "${projectDir}/../.."
params.conf = "${params.repository}/configs/demo/exp_00_phantom.conf"
params.results = "${params.repository}/Attention_Map/results/demo/exp_00_phantom"

process HEAT_MAPS {
    // 75: stopped early; the same command continues. Everything else needs a person.
    errorStrategy { task.exitStatus == 75 ? 'retry' : 'terminate' }
    maxRetries 10

    input:
    // The .conf's path as a value: relative paths in it start at its own repository, not in the work folder.
    // The file beside it, so that -resume sees when its content has changed.
    val conf
    path 'watched.conf'
    val results

    output:
    path 'vqa_manifest.csv'

    script:
    """
    bash '${params.repository}/Attention_Map/submit_heatmap_gen.sh' '${conf}' --results-dir '${results}'
    cp '${results}/vqa_manifest.csv' vqa_manifest.csv
    """
}

process VQA {
    input:
    path manifest
    val results

    output:
    path 'answers.txt'

    script:
    // The next stage's command: image_path in the manifest is relative to the results folder.
    """
    wc -l < '${manifest}' > answers.txt
    """
}

workflow {
    conf = file(params.conf, checkIfExists: true).toAbsolutePath()
    results = file(params.results).toAbsolutePath().toString()
    HEAT_MAPS(conf.toString(), conf, results)
    VQA(HEAT_MAPS.out, results)
}
