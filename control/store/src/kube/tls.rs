//! TLS to the API server: whose certificates to trust, and our own.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::KubeError;
use super::access::Credentials;
use super::kubeconfig::Source;

/// Builds the configuration of one connection.
pub(super) fn config(credentials: &Credentials) -> Result<ClientConfig, KubeError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| KubeError::Option {
        option: "TLS",
        value: String::new(),
        problem: error.to_string(),
    })?;
    let builder = if credentials.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(roots(credentials.authority.as_ref())?)
    };
    let (certificate, key) = match (&credentials.certificate, &credentials.key) {
        (None, None) => return Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(certificate), None) => {
            return Err(certificate.broken("a client certificate without its key; write client-key as well"));
        }
        (None, Some(key)) => {
            return Err(key.broken("a client key without its certificate; write client-certificate as well"));
        }
    };
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_slice(&key.read()?);
    let secret = secret.map_err(|_| key.broken("no private key; it must be PEM without a password"))?;
    let own = builder.with_client_auth_cert(chain, secret);
    own.map_err(|error| key.broken(&format!("it does not fit the certificate: {error}")))
}

fn roots(authority: Option<&Source>) -> Result<RootCertStore, KubeError> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(source) => {
            let (added, _) = roots.add_parsable_certificates(certificates(source)?);
            if added == 0 {
                return Err(source.broken("no usable certificate; it must be PEM"));
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    Ok(roots)
}

fn certificates(source: &Source) -> Result<Vec<CertificateDer<'static>>, KubeError> {
    let bytes = source.read()?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(source.broken("no certificate; it must be PEM")),
    }
}

/// Trusts any server, as `insecure-skip-tls-verify` asks.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_certificate_needs_its_key_and_a_key_its_certificate() {
        let source = |name| Some(Source::Inline { name, bytes: b"s3cret".to_vec() });
        let of = |certificate, key| {
            let credentials = Credentials { insecure: true, certificate, key, ..Credentials::default() };
            config(&credentials).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(of(None, None), Ok(()));
        for (certificate, key, problem) in [
            (
                source("client-certificate-data"),
                None,
                "client-certificate-data in the kubeconfig: a client cert",
            ),
            (None, source("client-key-data"), "client-key-data in the kubeconfig: a client key without its"),
        ] {
            let error = of(certificate, key).expect_err(problem);
            assert!(error.contains(problem) && !error.contains("s3cret"), "{error}");
        }
    }
}
