//! The services as traits to implement, each beside its messages.

pub(crate) mod containers {
    pub(crate) use protos::containerd::containers::*;

    crate::grpc::service! {
        /// containerd's containers service.
        pub(crate) trait Containers, ContainersServer = "containerd.services.containers.v1.Containers" {
            unary get = "Get": GetContainerRequest => GetContainerResponse;
            unary list = "List": ListContainersRequest => ListContainersResponse;
            stream list_stream = "ListStream": ListContainersRequest => ListContainerMessage;
            unary create = "Create": CreateContainerRequest => CreateContainerResponse;
            unary update = "Update": UpdateContainerRequest => UpdateContainerResponse;
            unary delete = "Delete": DeleteContainerRequest => ();
        }
    }
}

pub(crate) mod content {
    pub(crate) use protos::containerd::content::*;

    crate::grpc::service! {
        /// containerd's content service.
        pub(crate) trait Content, ContentServer = "containerd.services.content.v1.Content" {
            unary info = "Info": InfoRequest => InfoResponse;
            unary update = "Update": UpdateRequest => UpdateResponse;
            stream list = "List": ListContentRequest => ListContentResponse;
            unary delete = "Delete": DeleteContentRequest => ();
            stream read = "Read": ReadContentRequest => ReadContentResponse;
            unary status = "Status": StatusRequest => StatusResponse;
            unary list_statuses = "ListStatuses": ListStatusesRequest => ListStatusesResponse;
            bidi write = "Write": WriteContentRequest => WriteContentResponse;
            unary abort = "Abort": AbortRequest => ();
        }
    }
}

pub(crate) mod diff {
    pub(crate) use protos::containerd::diff::*;

    crate::grpc::service! {
        /// containerd's diff service.
        pub(crate) trait Diff, DiffServer = "containerd.services.diff.v1.Diff" {
            unary apply = "Apply": ApplyRequest => ApplyResponse;
            unary diff = "Diff": DiffRequest => DiffResponse;
        }
    }
}

pub(crate) mod events {
    pub(crate) use protos::containerd::events::*;

    crate::grpc::service! {
        /// containerd's events service.
        pub(crate) trait Events, EventsServer = "containerd.services.events.v1.Events" {
            unary publish = "Publish": PublishRequest => ();
            unary forward = "Forward": ForwardRequest => ();
            stream subscribe = "Subscribe": SubscribeRequest => Envelope;
        }
    }
}

pub(crate) mod health {
    pub(crate) use protos::containerd::health::*;

    crate::grpc::service! {
        /// gRPC's health service.
        pub(crate) trait Health, HealthServer = "grpc.health.v1.Health" {
            unary check = "Check": HealthCheckRequest => HealthCheckResponse;
            stream watch = "Watch": HealthCheckRequest => HealthCheckResponse;
        }
    }
}

pub(crate) mod images {
    pub(crate) use protos::containerd::images::*;

    crate::grpc::service! {
        /// containerd's images service.
        pub(crate) trait Images, ImagesServer = "containerd.services.images.v1.Images" {
            unary get = "Get": GetImageRequest => GetImageResponse;
            unary list = "List": ListImagesRequest => ListImagesResponse;
            unary create = "Create": CreateImageRequest => CreateImageResponse;
            unary update = "Update": UpdateImageRequest => UpdateImageResponse;
            unary delete = "Delete": DeleteImageRequest => ();
        }
    }
}

pub(crate) mod introspection {
    pub(crate) use protos::containerd::introspection::*;

    crate::grpc::service! {
        /// containerd's introspection service.
        pub(crate) trait Introspection, IntrospectionServer = "containerd.services.introspection.v1.Introspection" {
            unary plugins = "Plugins": PluginsRequest => PluginsResponse;
            unary server = "Server": () => ServerResponse;
            unary plugin_info = "PluginInfo": PluginInfoRequest => PluginInfoResponse;
        }
    }
}

pub(crate) mod leases {
    pub(crate) use protos::containerd::leases::*;

    crate::grpc::service! {
        /// containerd's leases service.
        pub(crate) trait Leases, LeasesServer = "containerd.services.leases.v1.Leases" {
            unary create = "Create": CreateRequest => CreateResponse;
            unary delete = "Delete": DeleteRequest => ();
            unary list = "List": ListRequest => ListResponse;
            unary add_resource = "AddResource": AddResourceRequest => ();
            unary delete_resource = "DeleteResource": DeleteResourceRequest => ();
            unary list_resources = "ListResources": ListResourcesRequest => ListResourcesResponse;
        }
    }
}

pub(crate) mod namespaces {
    pub(crate) use protos::containerd::namespaces::*;

    crate::grpc::service! {
        /// containerd's namespaces service.
        pub(crate) trait Namespaces, NamespacesServer = "containerd.services.namespaces.v1.Namespaces" {
            unary get = "Get": GetNamespaceRequest => GetNamespaceResponse;
            unary list = "List": ListNamespacesRequest => ListNamespacesResponse;
            unary create = "Create": CreateNamespaceRequest => CreateNamespaceResponse;
            unary update = "Update": UpdateNamespaceRequest => UpdateNamespaceResponse;
            unary delete = "Delete": DeleteNamespaceRequest => ();
        }
    }
}

pub(crate) mod snapshots {
    pub(crate) use protos::containerd::snapshots::*;

    crate::grpc::service! {
        /// containerd's snapshots service.
        pub(crate) trait Snapshots, SnapshotsServer = "containerd.services.snapshots.v1.Snapshots" {
            unary prepare = "Prepare": PrepareSnapshotRequest => PrepareSnapshotResponse;
            unary view = "View": ViewSnapshotRequest => ViewSnapshotResponse;
            unary mounts = "Mounts": MountsRequest => MountsResponse;
            unary commit = "Commit": CommitSnapshotRequest => ();
            unary remove = "Remove": RemoveSnapshotRequest => ();
            unary stat = "Stat": StatSnapshotRequest => StatSnapshotResponse;
            unary update = "Update": UpdateSnapshotRequest => UpdateSnapshotResponse;
            stream list = "List": ListSnapshotsRequest => ListSnapshotsResponse;
            unary usage = "Usage": UsageRequest => UsageResponse;
            unary cleanup = "Cleanup": CleanupRequest => ();
        }
    }
}

pub(crate) mod streaming {
    crate::grpc::service! {
        /// containerd's streaming service.
        pub(crate) trait Streaming, StreamingServer = "containerd.services.streaming.v1.Streaming" {
            bidi stream = "Stream": prost_types::Any => prost_types::Any;
        }
    }
}

pub(crate) mod transfer {
    pub(crate) use protos::containerd::transfer::*;

    crate::grpc::service! {
        /// containerd's transfer service.
        pub(crate) trait Transfer, TransferServer = "containerd.services.transfer.v1.Transfer" {
            unary transfer = "Transfer": TransferRequest => ();
        }
    }
}

pub(crate) mod tasks {
    pub(crate) use protos::containerd::tasks::*;

    crate::grpc::service! {
        /// containerd's tasks service.
        pub(crate) trait Tasks, TasksServer = "containerd.services.tasks.v1.Tasks" {
            unary create = "Create": CreateTaskRequest => CreateTaskResponse;
            unary start = "Start": StartRequest => StartResponse;
            unary delete = "Delete": DeleteTaskRequest => DeleteResponse;
            unary delete_process = "DeleteProcess": DeleteProcessRequest => DeleteResponse;
            unary get = "Get": GetRequest => GetResponse;
            unary list = "List": ListTasksRequest => ListTasksResponse;
            unary kill = "Kill": KillRequest => ();
            unary exec = "Exec": ExecProcessRequest => ();
            unary resize_pty = "ResizePty": ResizePtyRequest => ();
            unary close_io = "CloseIO": CloseIoRequest => ();
            unary pause = "Pause": PauseTaskRequest => ();
            unary resume = "Resume": ResumeTaskRequest => ();
            unary list_pids = "ListPids": ListPidsRequest => ListPidsResponse;
            unary checkpoint = "Checkpoint": CheckpointTaskRequest => CheckpointTaskResponse;
            unary update = "Update": UpdateTaskRequest => ();
            unary metrics = "Metrics": MetricsRequest => MetricsResponse;
            unary wait = "Wait": WaitRequest => WaitResponse;
        }
    }
}

pub(crate) mod version {
    pub(crate) use protos::containerd::version::*;

    crate::grpc::service! {
        /// containerd's version service.
        pub(crate) trait Version, VersionServer = "containerd.services.version.v1.Version" {
            unary version = "Version": () => VersionResponse;
        }
    }
}
