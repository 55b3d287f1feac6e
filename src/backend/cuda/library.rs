//! Libraries of NVIDIA's that are opened by name where they are there. cudarc's own loader knows neither `libcublas.so.13` nor
//! `libnccl.so.2`.

use super::machine::CudaError;
use libloading::Library;
use std::path::PathBuf;

/// Opens the file that `variable` names, or the first of `names`. The variable may say `off`.
///
/// # Errors
/// `NoLibrary`, with the loader's words.
pub(super) fn open(what: &'static str, variable: &str, names: &[&str]) -> Result<Library, CudaError> {
    let absent = |reason: String| CudaError::NoLibrary { what, reason };
    let names: Vec<PathBuf> = match std::env::var_os(variable).filter(|name| !name.is_empty()) {
        Some(name) if name == "off" => return Err(absent(format!("{variable} is `off`"))),
        Some(name) => vec![PathBuf::from(name)],
        None => names.iter().map(PathBuf::from).collect(),
    };
    let mut reason = String::new();
    for name in &names {
        // SAFETY: the library's initialisers are NVIDIA's, or those of what the user has named.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                // The loader's own words lie below.
                let words = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                reason = if words.contains(&*name.to_string_lossy()) { words } else { format!("`{}`: {words}", name.display()) };
            }
        }
    }
    Err(absent(format!("{reason}; {variable} may name its file")))
}

/// # Safety
/// `T` is the type of the function `name` in the library's header.
pub(super) unsafe fn function<T: Copy>(library: &Library, what: &'static str, name: &str) -> Result<T, CudaError> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|function| *function).map_err(|error| CudaError::NoLibrary { what, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_library_gets_a_reason() {
        let error = open("a library", "ADVISOR_NO_SUCH_VARIABLE", &["libadvisor-has-none.so"]).unwrap_err().to_string();
        assert!(error.starts_with("a library cannot be opened: libadvisor-has-none.so"), "{error}");
        assert!(error.ends_with("; ADVISOR_NO_SUCH_VARIABLE may name its file"), "{error}");
    }
}
