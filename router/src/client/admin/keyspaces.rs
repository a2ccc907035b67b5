//! Keyspaces: create, list, change, drop.

use flotilla_proto::ids::SYSTEM_RANGE;
#[allow(unused_imports, reason = "for the documentation")]
use flotilla_proto::{Error, KeyspaceId, Result, v1};

use super::super::named::Admin;
use super::{Client, Repeat};

impl Client {
    /// Creates a keyspace; what the request leaves out gets its default.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*:
    /// [`Error::KeyspaceExists`], [`Error::InvalidArgument`] (the name, the number of replicas or of
    /// ranges); *ambiguous*: [`Error::Ambiguous`]: see [`Client::list_keyspaces`].
    pub async fn create_keyspace(&self, request: v1::CreateKeyspaceRequest) -> Result<v1::Keyspace> {
        let name = request.name.clone();
        let ask = |mut admin: Admin| {
            let request = request.clone();
            async move { admin.create_keyspace(request).await }
        };
        let answer: v1::CreateKeyspaceResponse =
            self.ask_leader(SYSTEM_RANGE, self.order(Repeat::IfNotDone), ask).await?;
        let created = settings(answer.keyspace, &name)?;
        // The nodes' lists follow; the client may use it at once.
        self.router().learn_keyspace(KeyspaceId(created.keyspace_id), &created.name);
        Ok(created)
    }

    /// The keyspaces there are, with their settings.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`].
    pub async fn list_keyspaces(&self) -> Result<Vec<v1::Keyspace>> {
        let ask = |mut admin: Admin| async move { admin.list_keyspaces(v1::ListKeyspacesRequest {}).await };
        Ok(self.ask_leader(SYSTEM_RANGE, self.question(), ask).await?.keyspaces)
    }

    /// Changes a keyspace's settings; what the request leaves out stays. May be repeated at will.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*:
    /// [`Error::KeyspaceNotFound`], [`Error::InvalidArgument`].
    pub async fn set_keyspace(&self, request: v1::SetKeyspaceRequest) -> Result<v1::Keyspace> {
        let name = request.name.clone();
        let ask = |mut admin: Admin| {
            let request = request.clone();
            async move { admin.set_keyspace(request).await }
        };
        let answer: v1::SetKeyspaceResponse = self.ask_leader(SYSTEM_RANGE, self.order(Repeat::Freely), ask).await?;
        settings(answer.keyspace, &name)
    }

    /// Drops a keyspace, with all that is in it. Its id is never used again.
    ///
    /// Errors: *retry*: [`Error::Timeout`], [`Error::Unavailable`]; *fail*:
    /// [`Error::KeyspaceNotFound`], [`Error::InvalidArgument`] (one that cannot be dropped);
    /// *ambiguous*: [`Error::Ambiguous`]: see [`Client::list_keyspaces`].
    pub async fn drop_keyspace(&self, name: &str) -> Result<()> {
        let ask = |mut admin: Admin| {
            let request = v1::DropKeyspaceRequest { name: name.to_string() };
            async move { admin.drop_keyspace(request).await }
        };
        // Given twice it would not find the keyspace, or drop a new one of the same name.
        let order = self.order(Repeat::IfNotDone);
        self.ask_leader(SYSTEM_RANGE, order, ask).await.map(|v1::DropKeyspaceResponse {}| ())
    }
}

fn settings(keyspace: Option<v1::Keyspace>, name: &str) -> Result<v1::Keyspace> {
    keyspace.ok_or_else(|| Error::Ambiguous { reason: format!("the answer says nothing of keyspace \"{name}\"") })
}
