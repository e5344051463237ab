//! Which controller and which certificates: flags, then `--context`, then the environment, then the
//! current context, field by field.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::config::{Context, ContextFile};
use crate::error::Failure;
use crate::options::ConnectionFlags;

/// Everything needed to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `https://host:port`
    pub(crate) controller: String,
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// The environment variables that matter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    pub(crate) controller: Option<String>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) operator_dir: Option<PathBuf>,
}

impl Environment {
    /// Reads them; an empty one counts as unset.
    pub(crate) fn read() -> Self {
        fn value(name: &str) -> Option<OsString> {
            std::env::var_os(name).filter(|value| !value.is_empty())
        }
        let path = |name| value(name).map(PathBuf::from);
        Self {
            controller: value("COFFERDAM_CONTROLLER").map(|url| url.to_string_lossy().into_owned()),
            ca: path("COFFERDAM_CA"),
            cert: path("COFFERDAM_CERT"),
            key: path("COFFERDAM_KEY"),
            operator_dir: path("COFFERDAM_OPERATOR_DIR"),
        }
    }
}

/// One source of settings.
#[derive(Default)]
struct Layer {
    controller: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl Layer {
    fn of_directory(directory: Option<&Path>) -> Self {
        let file = |name| directory.map(|directory| directory.join(name));
        Self {
            controller: None,
            ca: file("ca.pem"),
            cert: file("cert.pem"),
            key: file("key.pem"),
        }
    }

    fn of_context(context: &Context) -> Self {
        Self {
            controller: Some(context.controller.clone()),
            ca: Some(context.ca.clone()),
            cert: Some(context.cert.clone()),
            key: Some(context.key.clone()),
        }
    }
}

impl Target {
    /// Settles every field, or says which is missing and how to give it.
    pub(crate) fn resolve(
        flags: &ConnectionFlags,
        environment: &Environment,
        file: &ContextFile,
    ) -> Result<Self, Failure> {
        let mut layers = vec![
            Layer {
                controller: flags.controller.clone(),
                ca: flags.ca.clone(),
                cert: flags.cert.clone(),
                key: flags.key.clone(),
            },
            Layer::of_directory(flags.operator_dir.as_deref()),
        ];
        if let Some(name) = &flags.context {
            layers.push(Layer::of_context(file.find(name)?));
        }
        layers.push(Layer {
            controller: environment.controller.clone(),
            ca: environment.ca.clone(),
            cert: environment.cert.clone(),
            key: environment.key.clone(),
        });
        layers.push(Layer::of_directory(environment.operator_dir.as_deref()));
        if let (Some(name), None) = (&file.current, &flags.context) {
            layers.push(Layer::of_context(file.find(name)?));
        }

        let controller = layers
            .iter()
            .find_map(|layer| layer.controller.clone())
            .ok_or_else(|| {
                Failure::new(
                    "it is not known where the controller is",
                    "pass --controller https://HOST:PORT, set COFFERDAM_CONTROLLER, or run \
                     `cofferdam context add NAME --controller … --operator-dir …`",
                )
            })?;
        let file = |what: &str, pick: fn(&Layer) -> &Option<PathBuf>| {
            layers
                .iter()
                .find_map(|layer| pick(layer).clone())
                .ok_or_else(|| {
                    let flag = what.to_ascii_lowercase();
                    Failure::new(
                        format!("no {flag} file is named"),
                        format!(
                            "pass --{flag} FILE or --operator-dir DIR (with ca.pem, cert.pem and \
                             key.pem), set COFFERDAM_{what} or COFFERDAM_OPERATOR_DIR, or run \
                             `cofferdam context add`"
                        ),
                    )
                })
        };
        Ok(Self {
            controller: check_url(&controller)?,
            ca: file("CA", |layer| &layer.ca)?,
            cert: file("CERT", |layer| &layer.cert)?,
            key: file("KEY", |layer| &layer.key)?,
        })
    }
}

/// `https://host:port`, without a path.
pub(crate) fn check_url(text: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        Failure::new(
            format!("the controller's address {text:?} {why}"),
            "write it like https://cofferdam.example:7443",
        )
    };
    let uri: tonic::transport::Uri = text
        .parse()
        .map_err(|error| wrong(&format!("is not a URL: {error}")))?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") => {
            return Err(wrong("must begin with https://: every call is mutual TLS"));
        }
        _ => return Err(wrong("must begin with https://")),
    }
    if uri.host().is_none_or(str::is_empty) || !matches!(uri.path(), "" | "/") {
        return Err(wrong("must be a host and a port, nothing more"));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ContextFile {
        let context = |name: &str| Context {
            name: name.into(),
            controller: format!("https://{name}:1"),
            ca: format!("/{name}/ca").into(),
            cert: format!("/{name}/cert").into(),
            key: format!("/{name}/key").into(),
        };
        ContextFile {
            current: Some("prod".into()),
            contexts: vec![context("prod"), context("lab")],
        }
    }

    #[test]
    fn the_current_context_is_enough() {
        let target = Target::resolve(
            &ConnectionFlags::default(),
            &Environment::default(),
            &file(),
        )
        .unwrap();
        assert_eq!(target.controller, "https://prod:1");
        assert_eq!(target.key, Path::new("/prod/key"));
    }

    #[test]
    fn nearer_settings_win_field_by_field() {
        let environment = Environment {
            controller: Some("https://env:2".into()),
            operator_dir: Some("/env".into()),
            ..Environment::default()
        };
        let mut flags = ConnectionFlags {
            ca: Some("/flag/ca".into()),
            ..ConnectionFlags::default()
        };
        let target = Target::resolve(&flags, &environment, &file()).unwrap();
        assert_eq!(target.controller, "https://env:2");
        assert_eq!(target.ca, Path::new("/flag/ca"));
        assert_eq!(target.cert, Path::new("/env/cert.pem"));

        flags.context = Some("lab".into());
        let target = Target::resolve(&flags, &environment, &file()).unwrap();
        assert_eq!(target.controller, "https://lab:1");
        assert_eq!(target.cert, Path::new("/lab/cert"));
    }

    #[test]
    fn what_is_missing_is_named_with_the_way_out() {
        let flags = ConnectionFlags {
            controller: Some("https://c:1".into()),
            ..ConnectionFlags::default()
        };
        let failure =
            Target::resolve(&flags, &Environment::default(), &ContextFile::default()).unwrap_err();
        assert_eq!(failure.to_string(), "no ca file is named");
        assert!(failure.next().unwrap().contains("--operator-dir"));

        let flags = ConnectionFlags {
            context: Some("prd".into()),
            ..ConnectionFlags::default()
        };
        let failure = Target::resolve(&flags, &Environment::default(), &file()).unwrap_err();
        assert_eq!(failure.next().unwrap(), "there are: prod, lab");
    }

    #[test]
    fn addresses_without_tls_or_with_a_path_are_refused() {
        assert!(check_url("https://[fd00::1]:7443/").is_ok());
        for wrong in ["http://c:1", "c:1", "https://c:1/api", "https://", ""] {
            assert!(check_url(wrong).is_err(), "{wrong}");
        }
    }
}
