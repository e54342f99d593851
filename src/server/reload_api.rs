//! `POST /reload`: has the configuration read again, and answers with the outcome.

use hyper::{Response, StatusCode, http::request::Parts};
use serde_json::json;
use tokio::time::timeout;

use super::{admin_access, config_reloads::ConfigReloads, response, response_body::ResponseBody};

/// Answers a POST that may change something: 200 if the configuration is in force, 422 if it is
/// refused, and 202 if it is still being read.
pub(super) async fn handle(reloads: &ConfigReloads, head: &Parts) -> Response<ResponseBody> {
    if reloads.last().is_none() {
        let message = "this gateway has no configuration file that is read again";
        return response::error(StatusCode::NOT_FOUND, "not_found", message, None);
    }
    let Ok(Some(outcome)) = timeout(admin_access::wait_of(head), reloads.reload()).await else {
        let message = "the configuration is still being read; /status has the result";
        return response::json(StatusCode::ACCEPTED, &json!({ "message": message }));
    };
    let status = match outcome.refusal {
        None => StatusCode::OK,
        Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    response::json(
        status,
        &json!({
            "applied": outcome.refusal.is_none(),
            "refused": outcome.refusal,
            "restart_keys": outcome.restart_keys,
        }),
    )
}
