//! flotilla.v1.Kv: every request may come to any node.
//!
//! A request that names its range is for this node's replica; one that does not is routed. Unary
//! calls are always routed: their callers are clients of other makes, or people.

use flotilla_node::Node;
use flotilla_proto::v1;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::NodeRouter;
use super::stream::{self, ResponseStream};

/// The service.
#[derive(Clone)]
pub(crate) struct Service {
    node: Node,
    router: NodeRouter,
    stopping: watch::Receiver<bool>,
}

impl Service {
    pub(super) fn new(node: Node, router: NodeRouter, stopping: watch::Receiver<bool>) -> Self {
        Self { node, router, stopping }
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for Service {
    type StreamStream = ResponseStream;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(self.router.get(request.into_inner()).await?))
    }

    async fn multi_get(&self, request: Request<v1::MultiGetRequest>) -> Result<Response<v1::MultiGetResponse>, Status> {
        Ok(Response::new(self.router.multi_get(request.into_inner()).await?))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        Ok(Response::new(self.router.put(request.into_inner()).await?))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        Ok(Response::new(self.router.delete(request.into_inner()).await?))
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapResponse>, Status> {
        Ok(Response::new(self.router.compare_and_swap(request.into_inner()).await?))
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchResponse>, Status> {
        Ok(Response::new(self.router.batch(request.into_inner()).await?))
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<v1::ScanResponse>, Status> {
        Ok(Response::new(self.router.scan(request.into_inner()).await?))
    }

    async fn delete_range(
        &self,
        request: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeResponse>, Status> {
        Ok(Response::new(self.router.delete_range(request.into_inner()).await?))
    }

    async fn stream(&self, request: Request<Streaming<v1::StreamRequest>>) -> Result<Response<ResponseStream>, Status> {
        Ok(Response::new(stream::serve(
            self.node.clone(),
            self.router.clone(),
            self.stopping.clone(),
            request.into_inner(),
        )))
    }
}
