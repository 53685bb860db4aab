//! The store behind a URL, and what its refusals mean.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path as ObjectPath;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

/// What to do about an answer that another try would not change; none for those worth one.
pub(crate) fn refusal(error: &object_store::Error) -> Option<&'static str> {
    use object_store::Error as E;
    match error {
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => {
            Some("set the credentials that \"At a URL\" in docs/data.md names")
        }
        E::NotSupported { .. } => Some("use a server that answers range requests"),
        E::Generic { source, .. } => {
            // The status is in no public type, only in the words.
            let words = source.to_string();
            let refused = words.contains("status code: 4")
                && !["status code: 408", "status code: 429"].iter().any(|&s| words.contains(s));
            refused.then_some("check the URL, and the region and endpoint where it has them")
        }
        E::JoinError { .. } => None,
        _ => Some("check the URL"),
    }
}

/// How long a server that never answered may refuse: it is told of within five seconds.
pub(super) const UNREACHED: Duration = Duration::from_secs(3);

/// Whether there was no one to ask: no such host, nobody listening, no way there.
pub(super) fn refused(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            return error.kind() == HttpErrorKind::Connect;
        }
        cause = error.source();
    }
    false
}

/// The store behind a URL, and where the folder lies in it. Credentials and endpoints come from
/// the environment, in the names that `object_store` reads. A request may take as long as `limit` says.
pub(crate) fn connect(
    url: &Url,
    limit: &str,
    retry: &RetryConfig,
) -> Result<(Arc<dyn ObjectStore>, ObjectPath), object_store::Error> {
    let limits = [(ClientConfigKey::Timeout, limit)];
    let prefix = ObjectPath::from_url_path(url.path())?;
    let (url, retry) = (url.as_str(), retry.clone());
    let store: Arc<dyn ObjectStore> = match url.split("://").next() {
        Some("s3") => Arc::new(
            limits
                .into_iter()
                .fold(AmazonS3Builder::from_env(), |builder, (key, value)| {
                    builder.with_config(AmazonS3ConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        Some("gs") => Arc::new(
            limits
                .into_iter()
                .fold(GoogleCloudStorageBuilder::from_env(), |builder, (key, value)| {
                    builder.with_config(GoogleConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        Some("az") => Arc::new(
            limits
                .into_iter()
                .fold(MicrosoftAzureBuilder::from_env(), |builder, (key, value)| {
                    builder.with_config(AzureConfigKey::Client(key), value)
                })
                .with_url(url)
                .with_retry(retry)
                .build()?,
        ),
        _ => {
            let options = limits
                .into_iter()
                .fold(ClientOptions::new(), |options, (key, value)| options.with_config(key, value))
                .with_allow_http(true);
            let builder = HttpBuilder::new().with_url(url).with_retry(retry);
            let store = builder.with_client_options(options).build()?;
            return Ok((Arc::new(store), ObjectPath::default()));
        }
    };
    Ok((store, prefix))
}
