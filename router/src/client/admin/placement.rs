//! Questions to the placement service: what it decided, and what it would.

use flotilla_proto::ids::SYSTEM_RANGE;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, Result, v1};

use super::super::named::Admin;
use super::Client;

impl Client {
    /// What the placement service decided of late, newest first.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`].
    pub async fn placement_history(
        &self,
        request: v1::PlacementHistoryRequest,
    ) -> Result<v1::PlacementHistoryResponse> {
        let ask = |mut admin: Admin| async move { admin.placement_history(request).await };
        self.ask_leader(SYSTEM_RANGE, self.question(), ask).await
    }
}
