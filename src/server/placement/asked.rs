//! What the placement service can be asked for over the network: each request with the name that the service has for
//! it, and the answer that belongs to it.

use flotilla_placement::{Request, Response};
use flotilla_proto::v1;

/// A request on the wire that is one for the service.
pub(crate) trait Asked {
    /// What it is answered with.
    type Answer;

    /// As the service takes it.
    fn request(self) -> Request;

    /// The answer to it; `None`: that is one to something else.
    fn answer(response: Response) -> Option<Self::Answer>;
}

macro_rules! asked {
    ($($name:ident: $request:ident -> $answer:ident),* $(,)?) => {
        $(impl Asked for v1::$request {
            type Answer = v1::$answer;

            fn request(self) -> Request {
                Request::$name(self.into())
            }

            fn answer(response: Response) -> Option<v1::$answer> {
                match response {
                    Response::$name(answer) => Some(answer.into_plain()),
                    _ => None,
                }
            }
        })*
    };
}

/// Some answers are large, and come in a box.
trait IntoPlain<A> {
    fn into_plain(self) -> A;
}

impl<A> IntoPlain<A> for A {
    fn into_plain(self) -> A {
        self
    }
}

impl<A> IntoPlain<A> for Box<A> {
    fn into_plain(self) -> A {
        *self
    }
}

asked! {
    DecommissionNode: DecommissionNodeRequest -> DecommissionNodeResponse,
    Explain: RangeExplainRequest -> RangeExplainResponse,
    MaintainNode: MaintainNodeRequest -> MaintainNodeResponse,
    MergeRanges: MergeRangesRequest -> MergeRangesResponse,
    Plan: PlacementPlanRequest -> PlacementPlanResponse,
    Status: PlacementStatusRequest -> PlacementStatusResponse,
    CreateKeyspace: CreateKeyspaceRequest -> CreateKeyspaceResponse,
    DrainNode: DrainNodeRequest -> DrainNodeResponse,
    DropKeyspace: DropKeyspaceRequest -> DropKeyspaceResponse,
    History: PlacementHistoryRequest -> PlacementHistoryResponse,
    Join: JoinRequest -> JoinResponse,
    MoveReplica: MoveReplicaRequest -> MoveReplicaResponse,
    Report: ReportRequest -> ReportResponse,
    SetKeyspace: SetKeyspaceRequest -> SetKeyspaceResponse,
}
