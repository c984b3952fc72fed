//! Asynchronous events.

/// An event that no completion reports (`ibv_get_async_event(3)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AsyncEvent {
    /// The completion queue with this number overflowed: entries are lost (`IBV_EVENT_CQ_ERR`).
    CqError(u32),
    /// The queue pair with this number went to the error state by itself (`IBV_EVENT_QP_FATAL`).
    QpFatal(u16),
    /// The device failed (`IBV_EVENT_DEVICE_FATAL`). Nothing on it completes any more, and control calls fail with
    /// [`ControlError::DeviceGone`](crate::ControlError::DeviceGone).
    DeviceFatal,
    /// The link is up (`IBV_EVENT_PORT_ACTIVE`).
    PortActive,
    /// The link is down (`IBV_EVENT_PORT_ERR`).
    PortError,
}
