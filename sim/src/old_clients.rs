//! Clients that were there all along: when all has healed they find the leaders of today, whatever routes they learned.
//!
//! Whoever only comes then learns routes from the living, and does not notice what those never heard of: a client keeps the
//! newest route that anybody told it, the lost ones among them.

use bytes::Bytes;
use flotilla_proto::ids::DEFAULT_KEYSPACE;
use flotilla_proto::v1;
use v1::request::Body;

use crate::cluster::Cluster;

impl Cluster {
    /// Has every key read by such clients; returns them.
    pub(crate) fn read_by_old_clients(&mut self, clients: usize) -> Vec<usize> {
        // Scenarios have clients of their own, and judge their answers themselves.
        let old = (0..clients).filter(|client| self.clients[*client].answers.is_empty());
        let of_default = |client: &usize| self.clients[*client].keyspace == DEFAULT_KEYSPACE;
        let (of_default, young): (Vec<usize>, Vec<usize>) = old.partition(of_default);
        let keys: Vec<Bytes> = self.recorder.keys.get(&DEFAULT_KEYSPACE).into_iter().flatten().cloned().collect();
        let shared = of_default.iter().cycle().copied().zip(keys);
        let each = young.iter().flat_map(|client| {
            let keys = self.young_keys(self.clients[*client].keyspace);
            keys.into_iter().map(|key| (*client, key))
        });
        let gets: Vec<(usize, Bytes)> = shared.chain(each).collect();
        for (client, key) in gets {
            self.clients[client].script.push_back(Body::Get(v1::GetRequest { header: None, key }));
        }
        of_default.into_iter().chain(young).collect()
    }

    /// A reader that has asked for a key in vain.
    pub(crate) fn reads_in_vain(&self, readers: &[usize]) -> Option<String> {
        readers.iter().find_map(|reader| {
            let of = &self.clients[*reader];
            let error = of.answers.iter().find_map(|answer| answer.as_ref().err())?;
            let keyspace = of.keyspace.0;
            Some(format!("I13: client {reader} finds nobody who answers in keyspace {keyspace}: {error:?}"))
        })
    }
}
