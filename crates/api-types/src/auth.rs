//! Registry credentials.

use crate::wire::zero;

wire! {
    /// One registry's credentials: `X-Registry-Auth` (base64url of this), body of `POST /auth`.
    #[derive(Eq)]
    pub struct AuthConfig {
        #[serde(rename = "username", skip_serializing_if = "zero")]
        pub username: String,
        #[serde(rename = "password", skip_serializing_if = "zero")]
        pub password: String,
        /// base64 of `username:password`; only in config.json.
        #[serde(rename = "auth", skip_serializing_if = "zero")]
        pub auth: String,
        #[serde(rename = "email", skip_serializing_if = "zero")]
        pub email: String,
        #[serde(rename = "serveraddress", skip_serializing_if = "zero")]
        pub server_address: String,
        #[serde(rename = "identitytoken", skip_serializing_if = "zero")]
        pub identity_token: String,
        #[serde(rename = "registrytoken", skip_serializing_if = "zero")]
        pub registry_token: String,
    }

    /// Reply of `POST /auth`.
    #[derive(Eq)]
    pub struct AuthResponse {
        pub identity_token: String,
        pub status: String,
    }
}
