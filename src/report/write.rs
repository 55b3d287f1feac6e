//! All files of a run on disk, each written beside its place and then moved there: a file is whole or not there.

use super::{Inputs, ReportError, html, index_html, plots, recommendation_json, results_csv, samples_csv};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Writes `report.html`, the tables, the recommendation and the plots of every scenario below `dir/<name>/`, and `index.html` and
/// `results.csv` of all in `dir`. Returns the pages a person may want to open, the overview first.
pub fn write(dir: &Path, scenarios: &[Inputs]) -> Result<Vec<PathBuf>, ReportError> {
    let mut pages = vec![dir.join("index.html")];
    for inputs in scenarios {
        let folder = dir.join(&inputs.run.header.scenario);
        for plot in plots(inputs)? {
            put(&folder.join("plots").join(format!("{}.svg", plot.stem)), plot.standalone().as_bytes())?;
        }
        put(&folder.join("results.csv"), &results_csv(std::slice::from_ref(inputs))?)?;
        put(&folder.join("samples.csv"), &samples_csv(inputs)?)?;
        let mut recommendation = serde_json::to_vec_pretty(&recommendation_json(inputs)).expect("plain data");
        recommendation.push(b'\n');
        put(&folder.join("recommendation.json"), &recommendation)?;
        let page = folder.join("report.html");
        put(&page, html(inputs)?.as_bytes())?;
        pages.push(page);
    }
    put(&dir.join("results.csv"), &results_csv(scenarios)?)?;
    put(&pages[0], index_html(scenarios)?.as_bytes())?;
    Ok(pages)
}

/// Writes one file, whole or not at all.
pub fn put(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    let fail = |doing| move |source| ReportError::Io { doing, path: path.to_path_buf(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".partial-{}", std::process::id()));
    let partial = path.with_file_name(name);
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).map_err(|source| {
        fs::remove_file(&partial).ok();
        fail("write")(source)
    })
}
