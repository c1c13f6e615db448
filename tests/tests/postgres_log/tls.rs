//! The way to a shared log is encrypted where its URL says so, and its server is who the URL says.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use lockstep_coordinator::decision_log::DecisionLog as _;
use lockstep_coordinator::decision_log::postgres::PostgresLog;
use lockstep_tests::harness::postgres::{PostgresServer, give_to_server};

use super::{leased, open};

/// A server with a certificate of its own making, which it puts here.
fn server_with_tls(directory: &Path) -> PostgresServer {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let [certificate, key] = ["certificate", "key"].map(|name| directory.join(name));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    // The server takes no key that others can read.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    give_to_server(&key).unwrap();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    let [certificate, key] = [certificate, key].map(|path| path.display().to_string());
    let settings = [("ssl", "on"), ("ssl_cert_file", certificate.as_str()), ("ssl_key_file", key.as_str())];
    let server = PostgresServer::start_with(&settings).unwrap();
    server.create_database("log").unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_reached_over_tls_and_its_server_is_known_by_its_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_tls(directory.path());
    let url = server.url("log");
    let with = |parameters: &str| format!("{url}{}{parameters}", if url.contains('?') { '&' } else { '?' });
    let encrypted = |of: &str| {
        let sql = format!(
            "SELECT bool_and(ssl) = {of} FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE application_name LIKE 'lockstep%'"
        );
        server.psql("log", &sql).unwrap()
    };

    let log = open(&leased(&with("sslmode=require"), "a")).await;
    assert_eq!(encrypted("true"), "t", "every connection, whatever it is for");
    log.close().await;

    // Who stands between could show a certificate of his own: so one that nobody vouches for is refused.
    let refused = PostgresLog::open(&leased(&with("sslmode=verify-full"), "a")).await.map(drop).unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    let roots = directory.path().join("certificate").display().to_string();
    open(&leased(&with(&format!("sslmode=verify-full&sslrootcert={roots}")), "a")).await.close().await;

    let log = open(&leased(&with("sslmode=disable"), "a")).await;
    assert_eq!(encrypted("false"), "t");
    log.close().await;
}
